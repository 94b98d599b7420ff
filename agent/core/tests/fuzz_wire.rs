//! Structure-aware noise for the peer protocol's codec: valid conversations, damaged by a seeded generator.

use millstream_agent_core::wire::{
    Features, Frame, Hello, QueuePair, Refusal, RemoteSlot, StatusCode, TokenHash, Trouble, fuzz,
};
use millstream_types::Digest;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

const ROUNDS: u64 = 20_000;

fn frame(rng: &mut StdRng) -> Frame {
    let id = rng.random();
    let len = rng.random_range(1..=4 << 20);
    match rng.random_range(0..10) {
        0 => Frame::Request { id, digest: Digest(rng.random()), piece: rng.random(), len, deadline_ms: rng.random() },
        1 => Frame::Data { id, len },
        2 => Frame::Status { id, code: StatusCode::ALL[rng.random_range(0..StatusCode::ALL.len())] },
        3 => Frame::Cancel { id },
        4 => Frame::Ping { nonce: id },
        5 => Frame::Pong { nonce: id },
        6 => Frame::QueuePair(QueuePair {
            number: rng.random_range(0..1 << 24),
            psn: rng.random_range(0..1 << 24),
            gid: rng.random(),
            lid: rng.random(),
            mtu_code: rng.random_range(1..=5),
            infiniband: rng.random(),
        }),
        7 => Frame::WriteHere {
            id,
            digest: Digest(rng.random()),
            piece: rng.random(),
            len,
            deadline_ms: rng.random(),
            place: RemoteSlot { address: rng.random(), key: rng.random(), tag: rng.random() },
        },
        8 => Frame::Broken { trouble: Trouble::ALL[rng.random_range(0..Trouble::ALL.len())] },
        _ => Frame::GoAway,
    }
}

fn hello(rng: &mut StdRng) -> Hello {
    let name_len = rng.random_range(0..300);
    Hello {
        refusal: rng.random_bool(0.3).then(|| Refusal::ALL[rng.random_range(0..Refusal::ALL.len())]),
        window: rng.random(),
        features: Features(rng.random()),
        token: TokenHash(rng.random()),
        auth: rng.random(),
        node: (0..name_len).map(|_| if rng.random_bool(0.1) { 'ß' } else { 'n' }).collect(),
    }
}

/// One to four edits: a flipped bit, an interesting value in a field, bytes inserted, removed, repeated, cut off.
fn damage(rng: &mut StdRng, bytes: &mut Vec<u8>) {
    for _ in 0..rng.random_range(1..=4) {
        if bytes.is_empty() {
            return;
        }
        let at = rng.random_range(0..bytes.len());
        let run = rng.random_range(1..=16).min(bytes.len() - at);
        match rng.random_range(0..6) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at..at + run].fill([0, 1, 0x7f, 0x80, 0xff][rng.random_range(0..5)]),
            2 => rng.fill_bytes(&mut bytes[at..at + run]),
            3 => drop(bytes.drain(at..at + run)),
            4 => {
                let again = bytes[at..at + run].to_vec();
                bytes.splice(at..at, again);
            }
            _ => bytes.truncate(at),
        }
    }
}

#[test]
fn damaged_conversations_never_break_the_codec() {
    let mut decoded = 0;
    for seed in 0..ROUNDS {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut bytes = Vec::new();
        for _ in 0..rng.random_range(1..8) {
            frame(&mut rng).encode(&mut bytes);
        }
        damage(&mut rng, &mut bytes);
        decoded += fuzz::frames(&bytes);
    }
    assert!(decoded as u64 > ROUNDS, "the damage leaves most frames whole: {decoded}");
}

#[test]
fn damaged_greetings_never_break_the_codec() {
    let mut whole = 0;
    for seed in 0..ROUNDS / 10 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut bytes = Vec::new();
        hello(&mut rng).encode(&mut bytes);
        if seed % 8 != 0 {
            damage(&mut rng, &mut bytes);
        }
        whole += u64::from(fuzz::hello(&bytes));
    }
    assert!(whole > ROUNDS / 80, "undamaged greetings are whole: {whole}");
}

#[test]
fn pure_noise_never_breaks_the_codec() {
    let mut rng = StdRng::seed_from_u64(7);
    for _ in 0..ROUNDS {
        let mut bytes = vec![0; rng.random_range(0..400)];
        rng.fill_bytes(&mut bytes);
        fuzz::frames(&bytes);
        // Past the first byte, too.
        if let Some(first) = bytes.first_mut() {
            *first = *first % 7 + 1;
        }
        fuzz::frames(&bytes);
        fuzz::hello(&bytes);
    }
}
