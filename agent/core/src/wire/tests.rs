use proptest::prelude::*;

use super::hello::{HELLO_BYTES_MAX, HELLO_FIXED_BYTES};
use super::*;

fn frame() -> impl Strategy<Value = Frame> {
    let len = 1..=LEN_MAX;
    let code = proptest::sample::select(StatusCode::ALL.to_vec());
    prop_oneof![
        (any::<u64>(), any::<[u8; 32]>(), any::<u32>(), len.clone(), any::<u32>()).prop_map(
            |(id, digest, piece, len, deadline_ms)| Frame::Request {
                id,
                digest: Digest(digest),
                piece,
                len,
                deadline_ms
            }
        ),
        (any::<u64>(), len).prop_map(|(id, len)| Frame::Data { id, len }),
        (any::<u64>(), code).prop_map(|(id, code)| Frame::Status { id, code }),
        any::<u64>().prop_map(|id| Frame::Cancel { id }),
        any::<u64>().prop_map(|nonce| Frame::Ping { nonce }),
        any::<u64>().prop_map(|nonce| Frame::Pong { nonce }),
        Just(Frame::GoAway),
        proptest::sample::select(Trouble::ALL.to_vec()).prop_map(|trouble| Frame::Broken { trouble }),
        (0..=BITS_24, 0..=BITS_24, any::<[u8; 16]>(), any::<u16>(), 1u8..=5, any::<bool>()).prop_map(
            |(number, psn, gid, lid, mtu_code, infiniband)| {
                Frame::QueuePair(QueuePair { number, psn, gid, lid, mtu_code, infiniband })
            }
        ),
        (any::<u64>(), any::<[u8; 32]>(), any::<u32>(), 1..=LEN_MAX, any::<u32>(), any::<(u64, u32, u32)>()).prop_map(
            |(id, digest, piece, len, deadline_ms, (address, key, tag))| Frame::WriteHere {
                id,
                digest: Digest(digest),
                piece,
                len,
                deadline_ms,
                place: RemoteSlot { address, key, tag },
            }
        ),
    ]
}

fn hello() -> impl Strategy<Value = Hello> {
    let refusal = proptest::option::of(proptest::sample::select(Refusal::ALL.to_vec()));
    let name = proptest::collection::vec(any::<char>(), 0..60).prop_map(|c| c.into_iter().collect::<String>());
    (refusal, any::<u16>(), any::<u64>(), any::<[u8; 32]>(), any::<[u8; 32]>(), name).prop_map(
        |(refusal, window, features, token, auth, node)| Hello {
            refusal,
            window,
            features: Features(features),
            token: TokenHash(token),
            auth,
            node,
        },
    )
}

fn encoded(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frames.iter().for_each(|f| f.encode(&mut bytes));
    bytes
}

proptest! {
    #[test]
    fn frames_come_back_in_whatever_chunks(frames in proptest::collection::vec(frame(), 1..20),
                                           cuts in proptest::collection::vec(1usize..80, 1..40)) {
        let bytes = encoded(&frames);
        let (mut held, mut decoded, mut at) = (Vec::new(), Vec::new(), 0);
        for cut in cuts.iter().cycle() {
            let end = (at + cut).min(bytes.len());
            held.extend_from_slice(&bytes[at..end]);
            at = end;
            let mut view = held.as_slice();
            while let Some(frame) = Frame::decode(&mut view).unwrap() {
                decoded.push(frame);
            }
            held.drain(..held.len() - view.len());
            if at == bytes.len() {
                break;
            }
        }
        prop_assert_eq!(decoded, frames);
        prop_assert!(held.is_empty());
    }

    #[test]
    fn arbitrary_bytes_never_panic_nor_are_read_past_a_frame(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut view = bytes.as_slice();
        loop {
            let before = view;
            match Frame::decode(&mut view) {
                Ok(Some(frame)) => {
                    // What was taken is exactly what the frame encodes to: nothing was skipped, nothing over-read.
                    let taken = before.len() - view.len();
                    prop_assert_eq!(&encoded(&[frame])[..], &before[..taken]);
                }
                Ok(None) => {
                    prop_assert_eq!(view, before);
                    prop_assert!(view.len() < FRAME_BYTES_MAX);
                    break;
                }
                Err(_) => { prop_assert_eq!(view, before); break; }
            }
        }
    }

    #[test]
    fn hellos_come_back_and_their_prefixes_wait(hello in hello(), more in proptest::collection::vec(any::<u8>(), 0..9)) {
        let mut bytes = Vec::new();
        hello.encode(&mut bytes);
        prop_assert!(bytes.len() <= HELLO_BYTES_MAX);
        for cut in 0..bytes.len() {
            prop_assert_eq!(Hello::decode(&mut &bytes[..cut]), Ok(None));
        }
        bytes.extend_from_slice(&more);
        let mut view = bytes.as_slice();
        prop_assert_eq!(Hello::decode(&mut view), Ok(Some(hello)));
        prop_assert_eq!(view, more.as_slice());
    }

    #[test]
    fn a_damaged_hello_never_panics(hello in hello(), at in 0usize..HELLO_BYTES_MAX, to in any::<u8>()) {
        let mut bytes = Vec::new();
        hello.encode(&mut bytes);
        let at = at % bytes.len();
        bytes[at] = to;
        let mut view = bytes.as_slice();
        if let Ok(Some(_)) = Hello::decode(&mut view) {
            prop_assert!(bytes.len() - view.len() >= HELLO_FIXED_BYTES);
        }
    }
}

fn plain_hello() -> Vec<u8> {
    let mut bytes = Vec::new();
    let hello = Hello {
        refusal: None,
        window: 64,
        features: Features::NONE,
        token: TokenHash::default(),
        auth: [0; 32],
        node: "n".into(),
    };
    hello.encode(&mut bytes);
    bytes
}

#[test]
fn another_version_is_named_in_the_error_before_the_rest_is_there() {
    let mut bytes = plain_hello();
    bytes[8] = 9;
    bytes.truncate(12);
    let error = Hello::decode(&mut bytes.as_slice()).unwrap_err();
    assert_eq!(error, WireError::Version { theirs: 9, ours: 1 });
    assert_eq!(error.to_string(), "peer protocol version 9 is not known here; 1 is");
}

#[test]
fn foreign_protocols_are_refused_at_their_first_bytes() {
    for foreign in [&b"GET / HTTP/1.1\r\n"[..], b"SSH-2.0", b"\x16\x03\x01", b"mx"] {
        assert_eq!(Hello::decode(&mut &foreign[..]), Err(WireError::Magic));
    }
    assert_eq!(Hello::decode(&mut &b"ml"[..]), Ok(None));
}

#[test]
fn long_names_are_cut_between_characters() {
    let mut hello = Hello::decode(&mut plain_hello().as_slice()).unwrap().unwrap();
    hello.node = "ü".repeat(200);
    let mut bytes = Vec::new();
    hello.encode(&mut bytes);
    let back = Hello::decode(&mut bytes.as_slice()).unwrap().unwrap();
    assert_eq!(back.node, "ü".repeat(127));
}

#[test]
fn lengths_are_checked_before_the_rest_of_the_frame_arrives() {
    let digest = Digest([3; 32]);
    let request = Frame::Request { id: 1, digest, piece: 2, len: LEN_MAX, deadline_ms: 4 };
    let data = Frame::Data { id: 1, len: LEN_MAX };
    for frame in [request, data] {
        let mut bytes = encoded(&[frame]);
        assert_eq!(bytes.len(), if matches!(frame, Frame::Data { .. }) { HEADER_BYTES } else { REQUEST_BYTES });
        for len in [0, LEN_MAX + 1, u32::MAX] {
            bytes[4..8].copy_from_slice(&len.to_le_bytes());
            assert_eq!(Frame::decode(&mut &bytes[..HEADER_BYTES]), Err(WireError::Length { len }));
        }
    }
}

#[test]
fn fields_that_must_be_zero_are_checked() {
    for (at, frame) in [(1, Frame::GoAway), (2, Frame::GoAway), (4, Frame::GoAway), (8, Frame::GoAway)]
        .into_iter()
        .chain([(1, Frame::Data { id: 1, len: 1 }), (3, Frame::Ping { nonce: 1 }), (5, Frame::Cancel { id: 1 })])
    {
        let mut bytes = encoded(&[frame]);
        bytes[at] = 1;
        assert!(matches!(Frame::decode(&mut bytes.as_slice()), Err(WireError::Reserved { .. })), "{frame:?} at {at}");
    }
    let mut status = encoded(&[Frame::Status { id: 1, code: StatusCode::NotHave }]);
    status[1] = 99;
    assert_eq!(Frame::decode(&mut status.as_slice()), Err(WireError::Code { what: "status", code: 99 }));
}

#[test]
fn the_layout_is_the_documented_one() {
    let request =
        Frame::Request { id: 0x0807_0605_0403_0201, digest: Digest([9; 32]), piece: 7, len: 0x10203, deadline_ms: 5 };
    let mut expected = vec![1, 0, 0, 0, 3, 2, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    expected.extend([9; 32]);
    expected.extend([7, 0, 0, 0, 5, 0, 0, 0]);
    assert_eq!(encoded(&[request]), expected);
}

#[test]
fn tokens_match_only_themselves_and_do_not_print() {
    let token = TokenHash([1; 32]);
    let mut other = token;
    assert!(token.matches(&other));
    other.0[31] = 0;
    assert!(!token.matches(&other));
    assert_eq!(format!("{token:?}"), "TokenHash(..)");
}
