//! The server as an ordinary S3 client sees it, and each fault as it arrives there.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use futures::TryStreamExt;
use millstream_sim_s3::{
    BucketConfig, Credentials, Fault, FaultKind, ObjectOptions, S3Server, S3ServerGuard, Seeded, ServerConfig,
};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt, RetryConfig, WriteMultipart};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn client(server: &S3ServerGuard, secret: Option<&str>) -> AmazonS3 {
    let builder = AmazonS3Builder::new()
        .with_endpoint(server.endpoint())
        .with_allow_http(true)
        .with_bucket_name("data")
        .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() });
    let builder = match secret {
        Some(secret) => builder.with_access_key_id("key").with_secret_access_key(secret),
        None => builder.with_skip_signature(true),
    };
    builder.build().unwrap()
}

async fn server() -> S3ServerGuard {
    S3Server::start(ServerConfig::default()).await.unwrap()
}

/// One request by hand: status, head, body.
async fn raw(addr: std::net::SocketAddr, head: &str) -> (u16, String, Vec<u8>) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all).await;
    let end = all.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(all[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head, all[end + 4..].to_vec())
}

fn get(path: &str, more: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{more}\r\n")
}

#[tokio::test]
async fn signatures_are_checked() {
    let config = ServerConfig {
        credentials: Some(Credentials { access_key: "key".into(), secret_key: "right".into() }),
        ..ServerConfig::default()
    };
    let server = S3Server::start(config).await.unwrap();
    server.put_bytes("data", "a b/ü%.tar", "hello", ObjectOptions::default()).unwrap();
    let path = Path::parse("a b/ü%.tar").unwrap();
    let got = client(&server, Some("right")).get(&path).await.unwrap();
    assert_eq!(got.bytes().await.unwrap(), "hello");
    for wrong in [Some("wrong"), None] {
        let refused = client(&server, wrong).get(&path).await;
        assert!(matches!(refused, Err(Error::PermissionDenied { .. })), "{refused:?}");
    }
}

#[tokio::test]
async fn ranges_conditions_and_checksums() {
    let server = server().await;
    server.put_seeded("data", "s", 5, 3_000_000, ObjectOptions::default()).unwrap();
    let expected = Seeded::new(5).bytes(3_000_000);
    let (store, path) = (client(&server, None), Path::from("s"));
    let got = store.get_range(&path, 999_990..2_000_010).await.unwrap();
    assert!(got == expected[999_990..2_000_010]);
    let etag = store.head(&path).await.unwrap().e_tag.unwrap();
    let pinned = |etag: &str| GetOptions {
        if_match: Some(etag.to_owned()),
        range: Some(GetRange::Bounded(0..5)),
        ..GetOptions::default()
    };
    assert!(store.get_opts(&path, pinned(&etag)).await.is_ok());
    assert!(matches!(store.get_opts(&path, pinned("\"other\"")).await, Err(Error::Precondition { .. })));
    let mode = "x-amz-checksum-mode: ENABLED\r\n";
    let (status, head, _) = raw(server.addr(), &get("/data/s", mode).replacen("GET", "HEAD", 1)).await;
    assert_eq!(status, 200);
    assert!(head.contains("x-amz-checksum-crc64nvme: ") && head.contains("x-amz-checksum-type: FULL_OBJECT"), "{head}");
    let (_, head, _) = raw(server.addr(), &get("/data/s", "").replacen("GET", "HEAD", 1)).await;
    assert!(!head.contains("checksum"), "only when asked for: {head}");
}

#[tokio::test]
async fn long_listings_come_in_pages() {
    let server = server().await;
    for i in 0..20_000 {
        server.put_bytes("data", &format!("p/{:02}/k{i:05}", i % 50), "x", ObjectOptions::default()).unwrap();
    }
    let store = client(&server, None);
    let all: Vec<_> = store.list(Some(&Path::from("p"))).try_collect().await.unwrap();
    assert_eq!(all.len(), 20_000);
    assert_eq!(server.stats().snapshot().requests["list"], 20);
    let folded = store.list_with_delimiter(Some(&Path::from("p"))).await.unwrap();
    assert_eq!((folded.common_prefixes.len(), folded.objects.len()), (50, 0));
}

#[tokio::test]
async fn uploads_to_memory_and_to_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("sub")).unwrap();
    std::fs::write(directory.path().join("sub/there"), vec![7; 300_000]).unwrap();
    let config = ServerConfig {
        buckets: vec![BucketConfig { name: "data".into(), directory: Some(directory.path().into()) }],
        ..ServerConfig::default()
    };
    for server in [server().await, S3Server::start(config).await.unwrap()] {
        let store = client(&server, None);
        store.put(&Path::from("one"), "hello".into()).await.unwrap();
        let upload = store.put_multipart(&Path::from("sub/many")).await.unwrap();
        let mut upload = WriteMultipart::new_with_chunk_size(upload, 6 << 20);
        upload.write(&vec![1; 7 << 20]);
        upload.finish().await.unwrap();
        let many = store.get(&Path::from("sub/many")).await.unwrap();
        assert_eq!(many.bytes().await.unwrap().len(), 7 << 20);
        store.delete(&Path::from("one")).await.unwrap();
        assert!(matches!(store.get(&Path::from("one")).await, Err(Error::NotFound { .. })));
    }
    assert!(directory.path().join("sub/many").is_file());
    let config = ServerConfig {
        buckets: vec![BucketConfig { name: "data".into(), directory: Some(directory.path().into()) }],
        ..ServerConfig::default()
    };
    let server = S3Server::start(config).await.unwrap();
    let store = client(&server, None);
    let before = store.head(&Path::from("sub/there")).await.unwrap();
    std::fs::write(directory.path().join("sub/there"), "changed").unwrap();
    let after = store.head(&Path::from("sub/there")).await.unwrap();
    assert!(before.e_tag != after.e_tag && after.size == 7, "files that change are noticed");
    let listed: Vec<_> = store.list(None).try_collect().await.unwrap();
    assert_eq!(listed.len(), 2, "{listed:?}");
}

#[tokio::test]
async fn versions_are_kept() {
    let config = ServerConfig { versioned: true, ..ServerConfig::default() };
    let server = S3Server::start(config).await.unwrap();
    let (store, path) = (client(&server, None), Path::from("k"));
    server.put_bytes("data", "k", "old", ObjectOptions::default()).unwrap();
    let version = store.head(&path).await.unwrap().version.unwrap();
    server.put_bytes("data", "k", "new", ObjectOptions::default()).unwrap();
    let options = GetOptions { version: Some(version), ..GetOptions::default() };
    let old = store.get_opts(&path, options).await.unwrap().bytes().await.unwrap();
    assert_eq!(
        (old.as_ref(), store.get(&path).await.unwrap().bytes().await.unwrap().as_ref()),
        (&b"old"[..], &b"new"[..])
    );
}

#[tokio::test]
async fn every_fault_arrives_and_is_counted() {
    let server = server().await;
    server.put_seeded("data", "k", 1, 1_000_000, ObjectOptions::default()).unwrap();
    let expected = Seeded::new(1).bytes(1_000_000);
    let order = |kind| server.faults().add(Fault::on_get("data/*", kind).times(1)).unwrap();
    let ask = || async { raw(server.addr(), &get("/data/k", "")).await };

    order(FaultKind::Status { status: 503, retry_after_s: Some(7) });
    let (status, head, body) = ask().await;
    assert!(status == 503 && head.contains("retry-after: 7") && body.windows(8).any(|w| w == b"SlowDown"));

    order(FaultKind::ShortBody { bytes: 400_000 });
    let (status, head, body) = ask().await;
    assert!(status == 200 && head.contains("content-length: 400000") && body[..] == expected[..400_000]);

    for cut in [FaultKind::Truncate { bytes: 300_001 }, FaultKind::Reset { bytes: 300_001 }] {
        order(cut.clone());
        let (status, head, body) = ask().await;
        assert!(status == 200 && head.contains("content-length: 1000000"), "{cut:?}");
        // After RST the receiver may lose what was under way.
        assert!(body.len() <= 300_001 && body[..] == expected[..body.len()], "{cut:?} {}", body.len());
    }

    order(FaultKind::Corrupt { at: 654_321 });
    let (_, _, body) = ask().await;
    let wrong: Vec<usize> = (0..body.len()).filter(|&i| body[i] != expected[i]).collect();
    assert_eq!((body.len(), wrong), (1_000_000, vec![654_321]));

    order(FaultKind::Changed);
    assert_eq!(ask().await.0, 412);

    order(FaultKind::Stall { bytes: 1000 });
    let stalled = tokio::time::timeout(Duration::from_millis(300), ask()).await;
    assert!(stalled.is_err(), "nothing more comes");

    let before = server.stats().snapshot().bytes_sent;
    let (status, _, body) = ask().await;
    assert!(status == 200 && body == expected, "faults are used up");
    assert_eq!(server.stats().snapshot().bytes_sent - before, 1_000_000);
    assert!(server.faults().list().iter().all(|armed| armed.hits == 1));
}

#[tokio::test]
async fn rates_hold_for_all_requests_together() {
    let server = server().await;
    server.put_seeded("data", "k", 1, 200_000, ObjectOptions::default()).unwrap();
    server.set_rate(Some(1_000_000));
    let start = std::time::Instant::now();
    let request = get("/data/k", "");
    let two = tokio::join!(raw(server.addr(), &request), raw(server.addr(), &request));
    assert_eq!(two.0.2.len() + two.1.2.len(), 400_000);
    // A lower bound only: how fast a busy machine is does not matter.
    assert!(start.elapsed() >= Duration::from_millis(350));
}

#[tokio::test]
async fn other_processes_control_it() {
    let server = server().await;
    let addr = server.control_addr();
    let post = |path: &str, body: &str| {
        format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    };
    let object = r#"{"bucket":"data","key":"t","text":"abc","checksum":"sha256"}"#;
    assert_eq!(raw(addr, &post("/objects", object)).await.0, 200);
    let fault = r#"{"key":"data/t","count":1,"kind":{"type":"status","status":500}}"#;
    assert_eq!(raw(addr, &post("/faults", fault)).await.0, 200);
    assert_eq!(raw(server.addr(), &get("/data/t", "")).await.0, 500);
    assert_eq!(raw(server.addr(), &get("/data/t", "")).await.2, b"abc");
    let (_, _, stats) = raw(addr, &get("/stats", "")).await;
    let stats = String::from_utf8(stats).unwrap();
    assert!(stats.contains(r#""bytes_sent":3"#) && stats.contains(r#""500":1"#), "{stats}");
    assert_eq!(raw(addr, &post("/faults", "{}")).await.0, 400);
    assert_eq!(raw(addr, &get("/nothing", "")).await.0, 404);
    assert_eq!(server.object("data", "t").unwrap().etag().unwrap(), "900150983cd24fb0d6963f7d28e17f72");
}
