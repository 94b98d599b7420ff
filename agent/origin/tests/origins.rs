//! The origin client against a real S3 server, a web server and a directory.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use millstream_origin::{ListedObject, Origin, OriginError, Pin, index};
use millstream_proto::manifest;
use millstream_sim_s3::{
    Credentials, EtagKind, Fault, FaultKind, ObjectOptions, S3Server, S3ServerGuard, Seeded, ServerConfig,
    StoredChecksum,
};
use millstream_types::Crc64;

fn vars(server: &S3ServerGuard) -> Vec<(String, String)> {
    let var = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    vec![
        var("AWS_ENDPOINT_URL", &server.endpoint()),
        var("AWS_ACCESS_KEY_ID", "key"),
        var("AWS_SECRET_ACCESS_KEY", "secret"),
    ]
}

fn origin(server: &S3ServerGuard, url: &str) -> Origin {
    Origin::from_url_with(url, vars(server)).unwrap()
}

async fn server() -> S3ServerGuard {
    let credentials = Credentials { access_key: "key".into(), secret_key: "secret".into() };
    S3Server::start(ServerConfig { credentials: Some(credentials), ..ServerConfig::default() }).await.unwrap()
}

async fn listed(origin: &Origin) -> Vec<ListedObject> {
    origin.list(|_| {}).await.unwrap().objects
}

fn pin(object: &ListedObject) -> Pin {
    Pin { etag: object.etag.clone(), version_id: object.version_id.clone(), len: object.len }
}

async fn read(origin: &Origin, object: &ListedObject, range: std::ops::Range<u64>) -> Result<Vec<u8>, OriginError> {
    let mut body = origin.get_range(object.key.as_str(), range.clone(), &pin(object)).await?;
    let mut bytes = vec![0; (range.end - range.start) as usize];
    // Odd sizes, so that reads end within chunks.
    let mut at = 0;
    while at < bytes.len() {
        let end = bytes.len().min(at + 70_001);
        at += body.read(&mut bytes[at..end]).await?;
    }
    assert_eq!((body.left(), body.read(&mut [0]).await.unwrap()), (0, 0));
    Ok(bytes)
}

const ODD: [&str; 12] = [
    "plain.tar",
    "with space.tar",
    "per%cent",
    "per%20cent",
    "plus+plus",
    "ümläut/日本.tar",
    "a=b&c=d?e#f",
    "back\\slash",
    "quote'\"<>`|{}^[]~!*()$;:@,",
    "...",
    "-rf",
    "emoji 🦀",
];

#[tokio::test]
async fn odd_keys_are_taken_literally() {
    let server = server().await;
    for prefix in ["", "pre fix/per%cent/ü"] {
        let url = format!("s3://data/{prefix}");
        let full = |key: &str| if prefix.is_empty() { key.to_owned() } else { format!("{prefix}/{key}") };
        for key in ODD {
            server.put_bytes("data", &full(key), key, ObjectOptions::default()).unwrap();
        }
        let origin = origin(&server, &url);
        let objects = listed(&origin).await;
        for key in ODD {
            let object = objects.iter().find(|o| o.key.as_str() == key).unwrap();
            assert_eq!(read(&origin, object, 0..object.len).await.unwrap(), key.as_bytes());
        }
        assert!(origin.checksums(&objects, |_| {}).await.unwrap().iter().all(Option::is_some));
        origin.put("new ü%/x", b"new".to_vec()).await.unwrap();
        assert!(server.object("data", &full("new ü%/x")).is_some());
        for key in ODD.into_iter().chain(["new ü%/x"]) {
            server.delete("data", &full(key));
        }
    }
}

#[tokio::test]
async fn markers_are_left_out_and_impossible_keys_are_named() {
    let server = server().await;
    let put = |key: &str, text: &'static str| server.put_bytes("data", key, text, ObjectOptions::default()).unwrap();
    put("p/", "");
    put("p/dir/", "");
    put("p/dir/a", "1");
    put("p/millstream-manifest.arrow", "index");
    put("pq/not-below", "1");
    let origin = origin(&server, "s3://data/p/");
    let listing = origin.list(|_| {}).await.unwrap();
    let keys: Vec<&str> = listing.objects.iter().map(|o| o.key.as_str()).collect();
    assert_eq!((keys, listing.has_index), (vec!["dir/a"], true));
    for i in 0..15 {
        put(&format!("p/a//{i}"), "1");
    }
    put("p/x/../y", "1");
    put("p/full/", "has bytes");
    let Err(OriginError::BadKeys { count, shown }) = origin.list(|_| {}).await else { panic!("accepted") };
    assert_eq!((count, shown.len()), (17, 10));
    assert!(shown[0].contains("a//"), "{shown:?}");
}

#[tokio::test]
async fn long_listings_and_their_checksums() {
    let server = server().await;
    for i in 0..20_000 {
        server.put_bytes("data", &format!("p/{i:05}"), "x", ObjectOptions::default()).unwrap();
    }
    let origin = origin(&server, "s3://data/p");
    let mut told = 0;
    let objects = origin.list(|progress| told = progress.objects).await.unwrap().objects;
    assert_eq!((objects.len(), told), (20_000, 20_000));
    assert!(objects.is_sorted_by(|a, b| a.key < b.key));
    let few = &objects[..300];
    let mut told = 0;
    let sums = origin.checksums(few, |n| told = n).await.unwrap();
    assert!(sums.iter().all(|s| s.as_ref().unwrap().to_string() == Crc64::of(b"x").to_string()), "{:?}", sums[0]);
    assert_eq!(told, 300);
    let stats = server.stats().snapshot();
    assert!(stats.connections < 80, "connections are used again: {}", stats.connections);
}

#[tokio::test]
async fn every_kind_of_checksum() {
    use StoredChecksum::{Crc32c, Crc32cComposite, Crc64Nvme, Sha256};
    let server = server().await;
    let put = |key: &str, checksum, etag, kms| {
        let options = ObjectOptions { checksum, etag, kms };
        server.put_bytes("data", key, "123456789", options).unwrap();
    };
    put("1 crc64nvme", Crc64Nvme, EtagKind::Multipart, false);
    put("2 crc32c", Crc32c, EtagKind::Multipart, false);
    put("3 sha256", Sha256, EtagKind::Multipart, false);
    put("4 composite", Crc32cComposite, EtagKind::Multipart, false);
    put("5 composite, md5", Crc32cComposite, EtagKind::Md5, false);
    put("6 md5", StoredChecksum::None, EtagKind::Md5, false);
    put("7 kms", StoredChecksum::None, EtagKind::Md5, true);
    put("8 multipart", StoredChecksum::None, EtagKind::Multipart, false);
    let origin = origin(&server, "s3://data");
    let objects = listed(&origin).await;
    let sums = origin.checksums(&objects, |_| {}).await.unwrap();
    let text: Vec<String> = sums.iter().map(|s| s.as_ref().map_or("none".into(), ToString::to_string)).collect();
    assert_eq!(
        text,
        [
            "crc64nvme:ae8b14860a799888",
            "crc32c:e3069283",
            "sha256:15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225",
            "none",
            "md5:25f9e794323b453885f5181f1b624d0b",
            "md5:25f9e794323b453885f5181f1b624d0b",
            "none",
            "none",
        ]
    );
    // And the same from bytes.
    for sum in sums.into_iter().flatten() {
        let mut hasher = millstream_origin::Hasher::like(&sum);
        hasher.update(b"12345");
        hasher.update(b"6789");
        assert_eq!(hasher.value(), sum);
    }
}

#[tokio::test]
async fn ranges_are_exact_and_connections_are_used_again() {
    let server = server().await;
    server.put_seeded("data", "s", 9, 5_000_000, ObjectOptions::default()).unwrap();
    let expected = Seeded::new(9).bytes(5_000_000);
    let origin = origin(&server, "s3://data");
    let object = &listed(&origin).await[0];
    for range in [0..5_000_000, 0..1, 4_999_999..5_000_000, 1_234_567..3_210_987, 77..77] {
        let bytes = read(&origin, object, range.clone()).await.unwrap();
        assert!(bytes == expected[range.start as usize..range.end as usize], "{range:?}");
    }
    assert_eq!(server.stats().snapshot().connections, 1);
    assert!(read(&origin, object, 0..5_000_001).await.is_err());
    // A body that is not read to its end takes its connection along, and nothing else.
    let body = origin.get_range("s", 0..5_000_000, &pin(object)).await.unwrap();
    drop(body);
    assert!(read(&origin, object, 10..20).await.unwrap() == expected[10..20]);
    assert_eq!(server.stats().snapshot().connections, 2);
}

#[tokio::test]
async fn another_object_is_never_read_for_the_pinned_one() {
    let server = server().await;
    let put = |text: &'static str| server.put_bytes("data", "k", text, ObjectOptions::default()).unwrap();
    put("first");
    let origin = origin(&server, "s3://data");
    let objects = listed(&origin).await;
    put("other");
    let changed = |result: Result<Vec<u8>, OriginError>| matches!(result, Err(OriginError::Changed { .. }));
    assert!(changed(read(&origin, &objects[0], 0..5).await));
    assert!(matches!(origin.checksums(&objects, |_| {}).await, Err(OriginError::Changed { .. })));
    // Without an ETag the length still counts.
    let lengthened = ListedObject { etag: None, len: 9, ..objects[0].clone() };
    assert!(changed(read(&origin, &lengthened, 0..5).await));
    server.delete("data", "k");
    assert!(matches!(read(&origin, &objects[0], 0..5).await, Err(OriginError::NotFound { .. })));
}

#[tokio::test]
async fn versions_are_pinned() {
    let server = S3Server::start(ServerConfig { versioned: true, ..ServerConfig::default() }).await.unwrap();
    server.put_bytes("data", "k", "first", ObjectOptions::default()).unwrap();
    let origin = origin(&server, "s3://data");
    let mut objects = listed(&origin).await;
    objects[0].version_id = origin.facts(&objects, |_| {}).await.unwrap()[0].version_id.clone();
    assert!(objects[0].version_id.is_some());
    server.put_bytes("data", "k", "other", ObjectOptions::default()).unwrap();
    assert_eq!(read(&origin, &objects[0], 0..5).await.unwrap(), b"first");
}

#[tokio::test]
async fn faults_are_told_apart() {
    let server = server().await;
    server.put_seeded("data", "k", 3, 1_000_000, ObjectOptions::default()).unwrap();
    let origin = origin(&server, "s3://data");
    let object = &listed(&origin).await[0];
    let status = |status, retry_after_s| FaultKind::Status { status, retry_after_s };
    for (kind, expected) in [
        (status(503, Some(3)), "Throttled"),
        (status(429, None), "Throttled"),
        (status(500, None), "Transient"),
        (status(504, None), "Transient"),
        (status(403, None), "Denied"),
        (status(404, None), "NotFound"),
        (status(301, None), "Denied"),
        (FaultKind::Changed, "Changed"),
        (FaultKind::ShortBody { bytes: 500_000 }, "Transient"),
        (FaultKind::Truncate { bytes: 500_000 }, "Transient"),
        (FaultKind::Reset { bytes: 500_000 }, "Transient"),
        (FaultKind::Reset { bytes: 0 }, "Transient"),
    ] {
        server.faults().add(Fault::on_get("data/k", kind.clone()).times(2)).unwrap();
        let error = read(&origin, object, 0..1_000_000).await.unwrap_err();
        assert!(format!("{error:?}").starts_with(expected), "{kind:?}: {error:?}");
        if let OriginError::Throttled { retry_after, .. } = &error {
            assert_eq!(
                *retry_after,
                matches!(kind, FaultKind::Status { status: 503, .. }).then_some(Duration::from_secs(3))
            );
        }
        server.faults().clear();
    }
    assert!(read(&origin, object, 0..1_000_000).await.unwrap() == Seeded::new(3).bytes(1_000_000));
}

#[tokio::test]
async fn registration_rides_out_a_hiccup() {
    let server = server().await;
    server.put_bytes("data", "k", "x", ObjectOptions::default()).unwrap();
    let origin = origin(&server, "s3://data");
    for request in ["list", "head"] {
        let fault = Fault {
            key: "data*".into(),
            request: Some(request.into()),
            skip: 0,
            count: Some(2),
            kind: FaultKind::Status { status: 503, retry_after_s: None },
        };
        server.faults().add(fault).unwrap();
    }
    let objects = listed(&origin).await;
    assert!(origin.checksums(&objects, |_| {}).await.unwrap()[0].is_some());
}

#[tokio::test]
async fn refusals_name_the_next_step() {
    let server = server().await;
    let mut wrong = vars(&server);
    wrong[2].1 = "wrong".into();
    let origin = Origin::from_url_with("s3://data/p", wrong).unwrap();
    let Err(OriginError::Denied { detail, .. }) = origin.list(|_| {}).await else { panic!("listed") };
    assert!(detail.contains("403") && detail.contains("SignatureDoesNotMatch"), "{detail}");
    let missing = self::origin(&server, "s3://no-such-bucket/p").list(|_| {}).await;
    assert!(matches!(missing, Err(OriginError::NotFound { .. })), "{missing:?}");
    for bad in ["", "data", "s3://", "s3:///x", "ftp://h/x", "http://u:p@h/", "file://host/x", "s3://b/\n"] {
        let refused = Origin::from_url_with(bad, vars(&server));
        assert!(matches!(refused, Err(OriginError::Url { .. })), "{bad:?}: {refused:?}");
    }
}

#[tokio::test]
async fn a_stale_connection_is_replaced() {
    let first = server().await;
    first.put_bytes("data", "k", "x", ObjectOptions::default()).unwrap();
    let origin = origin(&first, "s3://data");
    assert_eq!(listed(&origin).await.len(), 1);
    let (addr, credentials) = (first.addr(), Credentials { access_key: "key".into(), secret_key: "secret".into() });
    drop(first);
    // The same port again: what lies in the pool is dead, the server is not.
    let again = loop {
        let config = ServerConfig { listen: addr, credentials: Some(credentials.clone()), ..ServerConfig::default() };
        match S3Server::start(config).await {
            Ok(server) => break server,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    again.put_bytes("data", "k2", "x", ObjectOptions::default()).unwrap();
    assert_eq!(listed(&origin).await[0].key.as_str(), "k2");
}

async fn indexed(server: &S3ServerGuard, url: &str) -> Origin {
    let kinds = [StoredChecksum::Crc64Nvme, StoredChecksum::Crc32c, StoredChecksum::Sha256, StoredChecksum::None];
    for (i, checksum) in kinds.into_iter().enumerate() {
        let options = ObjectOptions { checksum, etag: EtagKind::Multipart, kms: false };
        server.put_seeded("data", &format!("p/ü {i}"), i as u64, 300_000 + i as u64, options).unwrap();
    }
    server.put_bytes("data", "p/empty", "", ObjectOptions::default()).unwrap();
    let origin = origin(server, url);
    let built = index::build(&origin, |_| {}).await.unwrap();
    origin.put(index::INDEX_KEY, manifest::encode(&built, None).unwrap()).await.unwrap();
    origin
}

#[tokio::test]
async fn an_index_is_written_read_and_goes_stale() {
    let server = server().await;
    let origin = indexed(&server, "s3://data/p").await;
    let listing = origin.list(|_| {}).await.unwrap();
    assert!(listing.has_index && listing.objects.len() == 5);
    let found = manifest::decode(&index::read(&origin).await.unwrap().unwrap()).unwrap();
    let shards = index::matching(&found, &listing.objects).unwrap();
    for shard in &shards[1..] {
        let data = Seeded::new(shard.len - 300_000).bytes(shard.len as usize);
        let pieces: Vec<Crc64> = data.chunks(found.layout().piece_len() as usize).map(Crc64::of).collect();
        assert_eq!(shard.piece_crcs.as_ref(), Some(&pieces), "{}", shard.key);
    }
    server.put_bytes("data", "p/empty", "no more", ObjectOptions::default()).unwrap();
    let stale = index::matching(&found, &listed(&origin).await);
    assert!(stale.unwrap_err().to_string().contains("empty"));
}

#[tokio::test]
async fn an_index_is_not_built_from_bytes_that_the_origin_does_not_vouch_for() {
    for checksum in [StoredChecksum::Crc64Nvme, StoredChecksum::Crc32c, StoredChecksum::Sha256] {
        let server = server().await;
        let options = ObjectOptions { checksum, etag: EtagKind::Multipart, kms: false };
        server.put_seeded("data", "k", 1, 400_000, options).unwrap();
        server.faults().add(Fault::on_get("data/k", FaultKind::Corrupt { at: 70_000 })).unwrap();
        let Err(OriginError::Invalid { detail }) = index::build(&origin(&server, "s3://data"), |_| {}).await else {
            panic!("built");
        };
        assert!(detail.contains("\"k\""), "{detail}");
    }
}

#[tokio::test]
async fn plain_http_goes_by_the_index() {
    // S3 without signatures is a web server with ranges and ETags.
    let server = S3Server::start(ServerConfig::default()).await.unwrap();
    let url = format!("{}/data/p", server.endpoint());
    let bare = Origin::from_url(&url).unwrap().list(|_| {}).await;
    assert!(
        matches!(bare, Err(OriginError::NotFound { ref detail, .. }) if detail.contains("dataset index")),
        "{bare:?}"
    );
    indexed(&server, "s3://data/p").await;
    let web = Origin::from_url(&url).unwrap();
    let listing = web.list(|_| {}).await.unwrap();
    assert_eq!(listing.objects.len(), 5);
    let found = manifest::decode(&index::read(&web).await.unwrap().unwrap()).unwrap();
    assert_eq!(index::matching(&found, &listing.objects).unwrap().len(), 5);
    assert_eq!(web.checksums(&listing.objects, |_| {}).await.unwrap().iter().flatten().count(), 4);
    let object = &listing.objects[1];
    assert!(read(&web, object, 5..299_999).await.unwrap() == Seeded::new(0).bytes(300_000)[5..299_999]);
    server.put_seeded("data", "p/ü 0", 77, 300_000, ObjectOptions::default()).unwrap();
    assert!(matches!(read(&web, object, 0..5).await, Err(OriginError::Changed { .. })));
    assert!(matches!(web.put("x", vec![]).await, Err(OriginError::Denied { .. })));
}

#[tokio::test]
async fn a_directory_is_an_origin() {
    let directory = tempfile::tempdir().unwrap();
    let data = Seeded::new(4).bytes(2_500_000);
    for key in ODD {
        let path = directory.path().join("pre fix").join(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, &data).unwrap();
    }
    let url = format!("file://{}/pre fix", directory.path().display());
    let origin = Origin::from_url(&url).unwrap();
    let objects = listed(&origin).await;
    assert_eq!(objects.len(), ODD.len());
    for object in &objects {
        assert!(ODD.contains(&object.key.as_str()), "{}", object.key);
        assert!(read(&origin, object, 1..2_400_000).await.unwrap() == data[1..2_400_000]);
    }
    assert!(origin.checksums(&objects, |_| {}).await.unwrap().iter().all(Option::is_none));
    // Replaced before the read, and changed while it goes on.
    let plain = objects.iter().find(|o| o.key.as_str() == "plain.tar").unwrap();
    let path = directory.path().join("pre fix/plain.tar");
    let mut body = origin.get_range("plain.tar", 0..plain.len, &pin(plain)).await.unwrap();
    let mut buffer = vec![0; plain.len as usize];
    body.read_exact(&mut buffer[..10]).await.unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert!(matches!(body.read_exact(&mut buffer[10..]).await, Err(OriginError::Changed { .. })));
    assert!(matches!(read(&origin, plain, 0..5).await, Err(OriginError::Changed { .. })));
    assert!(matches!(
        origin.get_range("../outside", 0..1, &Pin { len: 1, ..Pin::default() }).await,
        Err(OriginError::NotFound { .. })
    ));
    origin.put(index::INDEX_KEY, b"x".to_vec()).await.unwrap();
    assert!(origin.list(|_| {}).await.unwrap().has_index);
    let missing = Origin::from_url("file:///no/such/directory").unwrap().list(|_| {}).await;
    assert!(matches!(missing, Err(OriginError::NotFound { .. })));
}

#[tokio::test]
async fn what_changed_or_went_is_not_held_any_more() {
    let server = server().await;
    let put = |key: &str, text: &'static str| server.put_bytes("data", key, text, ObjectOptions::default()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = |key: &str, text: &str| std::fs::write(directory.path().join(key), text).unwrap();
    for key in ["changed", "gone", "longer", "same"] {
        put(&format!("p/{key}"), "old");
        file(key, "old");
    }
    let at_file = Origin::from_url(&format!("file://{}", directory.path().display())).unwrap();
    let origins = [origin(&server, "s3://data/p"), at_file];
    let mut pins = Vec::new();
    for origin in &origins {
        let objects = listed(origin).await;
        pins.push(objects.iter().map(|o| (o.key.clone(), pin(o))).collect::<Vec<_>>());
    }
    put("p/changed", "new");
    put("p/longer", "longer");
    server.delete("data", "p/gone");
    // Written beside it and renamed: a new file, whatever the clock says.
    file("new", "new");
    std::fs::rename(directory.path().join("new"), directory.path().join("changed")).unwrap();
    file("longer", "longer");
    std::fs::remove_file(directory.path().join("gone")).unwrap();
    for (origin, pins) in origins.iter().zip(&pins) {
        let answers = origin.still_holds(pins).await;
        use OriginError::{Changed, NotFound};
        let told = matches!(&answers[..], [Err(Changed { .. }), Err(NotFound { .. }), Err(Changed { .. }), Ok(())]);
        assert!(told, "{}: {answers:?}", origin.url());
    }
    let denied = Fault::on_get("*", FaultKind::Status { status: 403, retry_after_s: None });
    server.faults().add(Fault { request: Some("head".into()), ..denied });
    let answers = origins[0].still_holds(&pins[0]).await;
    assert!(answers.iter().all(|a| matches!(a, Err(OriginError::Denied { .. }))), "{answers:?}");
}
