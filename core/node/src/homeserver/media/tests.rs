//! Media as clients and other servers see them: real files, real images, two nodes.

use std::{io::Cursor, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode};
use image::{DynamicImage, ImageFormat, ImageReader, RgbaImage};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{
    Homeserver,
    testing::{Client, Cluster, assert_refused},
};

const UPLOAD: &str = "/_matrix/media/v3/upload";
const DOWNLOAD: &str = "/_matrix/client/v1/media/download";
const THUMBNAIL: &str = "/_matrix/client/v1/media/thumbnail";

async fn upload(client: &Client, query: &str, content_type: &str, bytes: &[u8]) -> String {
    let path = format!("{UPLOAD}?{query}");
    let response = client
        .raw_with(Method::POST, &path, &[("content-type", content_type)], bytes.into())
        .await;
    let answer: Value = serde_json::from_slice(response.body()).unwrap();
    assert_eq!(response.status(), StatusCode::OK, "{answer}");
    answer["content_uri"]
        .as_str()
        .unwrap()
        .strip_prefix("mxc://")
        .unwrap()
        .to_owned()
}

async fn get(client: &Client, path: &str, headers: &[(&str, &str)]) -> Response<Bytes> {
    client.raw_with(Method::GET, path, headers, Vec::new()).await
}

fn refusal(response: &Response<Bytes>) -> (StatusCode, Value) {
    (
        response.status(),
        serde_json::from_slice(response.body()).unwrap_or(Value::Null),
    )
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).map_or("", |value| value.to_str().unwrap())
}

fn png(width: u32, height: u32, alpha: u8) -> Vec<u8> {
    let image = RgbaImage::from_fn(width, height, |x, y| image::Rgba([x as u8, y as u8, 7, alpha]));
    let image = match alpha {
        255 => DynamicImage::ImageRgb8(DynamicImage::ImageRgba8(image).into_rgb8()),
        _ => DynamicImage::ImageRgba8(image),
    };
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn gif(frames: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = image::codecs::gif::GifEncoder::new(&mut bytes);
    for n in 0..frames {
        let image = RgbaImage::from_pixel(200, 100, image::Rgba([n as u8 * 40, 0, 0, 255]));
        encoder.encode_frame(image::Frame::new(image)).unwrap();
    }
    drop(encoder);
    bytes
}

fn dimensions(bytes: &[u8]) -> (u32, u32) {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().unwrap();
    reader.into_dimensions().unwrap()
}

/// Changes the first node's settings.
fn configure(cluster: &mut Cluster, change: impl FnOnce(&mut crate::config::Config)) {
    let mut context = cluster[0].hs.context.clone();
    let mut config = (*context.config).clone();
    change(&mut config);
    context.config = Arc::new(config);
    cluster.nodes[0].hs = Homeserver::new(context);
}

#[tokio::test]
async fn what_goes_up_comes_down_under_its_hash() {
    let mut cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let bytes: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
    let name = upload(&alice, "filename=na%C3%AFve%20%22x%22.bin", "video/mp4", &bytes).await;
    let hash = blake3::hash(&bytes);
    let id = data_encoding::BASE32_NOPAD.encode(hash.as_bytes()).to_ascii_lowercase();
    assert_eq!(name, format!("{}/{id}", cluster[0].name));
    assert_eq!(upload(&alice, "", "text/plain", &bytes).await, name);

    cluster.nodes[0].restart().await;
    let alice = cluster[0].login("alice").await;
    let response = get(&alice, &format!("{DOWNLOAD}/{name}"), &[]).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.body().as_ref(), bytes);
    let headers = response.headers();
    assert_eq!(text(headers, "content-type"), "video/mp4");
    assert_eq!(text(headers, "content-length"), "200000");
    assert_eq!(text(headers, "accept-ranges"), "bytes");
    assert_eq!(text(headers, "cross-origin-resource-policy"), "cross-origin");
    assert_eq!(text(headers, "x-content-type-options"), "nosniff");
    assert!(text(headers, "content-security-policy").starts_with("sandbox; default-src 'none'"));
    assert_eq!(
        text(headers, "content-disposition"),
        "inline; filename*=utf-8''na%C3%AFve%20%22x%22.bin"
    );
    let etag = text(headers, "etag").to_owned();
    let response = get(&alice, &format!("{DOWNLOAD}/{name}"), &[("if-none-match", &etag)]).await;
    assert_eq!(
        (response.status(), response.body().len()),
        (StatusCode::NOT_MODIFIED, 0)
    );
    let response = get(&alice, &format!("{DOWNLOAD}/{name}/other.mp4"), &[]).await;
    assert_eq!(
        text(response.headers(), "content-disposition"),
        "inline; filename=other.mp4"
    );
}

#[tokio::test]
async fn only_harmless_types_are_shown_in_place() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    for (content_type, expected) in [
        ("image/png", "inline"),
        ("IMAGE/PNG; x=y", "inline"),
        ("text/html", "attachment"),
        ("image/svg+xml", "attachment"),
        ("application/octet-stream", "attachment"),
        ("nonsense", "attachment"),
    ] {
        let name = upload(&alice, "", content_type, content_type.as_bytes()).await;
        let response = get(&alice, &format!("{DOWNLOAD}/{name}"), &[]).await;
        assert_eq!(
            text(response.headers(), "content-disposition"),
            expected,
            "{content_type}"
        );
        assert_eq!(text(response.headers(), "content-type"), content_type);
    }
}

#[tokio::test]
async fn parts_of_files() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let bytes = b"0123456789";
    let path = format!("{DOWNLOAD}/{}", upload(&alice, "", "text/plain", bytes).await);
    let etag = text(get(&alice, &path, &[]).await.headers(), "etag").to_owned();
    for (range, if_range, status, body, content_range) in [
        ("bytes=2-4", "", 206, "234", "bytes 2-4/10"),
        ("bytes=8-", "", 206, "89", "bytes 8-9/10"),
        ("bytes=-1", "", 206, "9", "bytes 9-9/10"),
        ("bytes=10-", "", 416, "", "bytes */10"),
        ("bytes=1-2,4-5", "", 200, "0123456789", ""),
        ("bytes=2-4", etag.as_str(), 206, "234", "bytes 2-4/10"),
        ("bytes=2-4", "\"other\"", 200, "0123456789", ""),
    ] {
        let headers = [("range", range), ("if-range", if_range)];
        let count = if if_range.is_empty() { 1 } else { 2 };
        let response = get(&alice, &path, &headers[..count]).await;
        assert_eq!(response.status().as_u16(), status, "{range}");
        assert_eq!(response.body().as_ref(), body.as_bytes(), "{range}");
        assert_eq!(text(response.headers(), "content-range"), content_range, "{range}");
    }
}

#[tokio::test]
async fn requests_that_are_refused() {
    let mut cluster = Cluster::start(1).await;
    configure(&mut cluster, |config| config.max_upload_bytes = 10);
    let alice = cluster[0].register("alice").await;
    let nobody = cluster[0].client();
    let name = upload(&alice, "", "text/plain", b"0123456789").await;
    let response = alice.raw_with(Method::POST, UPLOAD, &[], b"0123456789a".to_vec()).await;
    assert_refused(refusal(&response), (413, "M_TOO_LARGE"));
    let label = "x".repeat(256);
    let response = alice
        .raw_with(Method::POST, &format!("{UPLOAD}?filename={label}"), &[], Vec::new())
        .await;
    assert_refused(refusal(&response), (400, "M_INVALID_PARAM"));
    let response = nobody.raw_with(Method::POST, UPLOAD, &[], b"x".to_vec()).await;
    assert_refused(refusal(&response), (401, "M_MISSING_TOKEN"));
    let own = &cluster[0].name;
    for (client, path, expected) in [
        (&nobody, format!("{DOWNLOAD}/{name}"), (401, "M_MISSING_TOKEN")),
        (
            &nobody,
            format!("/_matrix/media/v3/download/{name}"),
            (404, "M_NOT_FOUND"),
        ),
        (
            &nobody,
            format!("/_matrix/media/r0/thumbnail/{name}?width=1&height=1"),
            (404, "M_NOT_FOUND"),
        ),
        (&alice, format!("{DOWNLOAD}/{own}/none"), (404, "M_NOT_FOUND")),
        (
            &alice,
            format!("{DOWNLOAD}/{own}/..%2F..%2Fkith.db"),
            (404, "M_NOT_FOUND"),
        ),
        (
            &alice,
            format!("{DOWNLOAD}/{own}/{}", "x".repeat(256)),
            (404, "M_NOT_FOUND"),
        ),
        (
            &alice,
            "/_matrix/media/v3/download/elsewhere/x?allow_remote=false".to_owned(),
            (404, "M_NOT_FOUND"),
        ),
        (&alice, format!("{DOWNLOAD}/elsewhere/x"), (502, "M_UNKNOWN")),
        (
            &alice,
            format!("{THUMBNAIL}/{name}?width=0&height=1"),
            (400, "M_INVALID_PARAM"),
        ),
        (
            &alice,
            format!("{THUMBNAIL}/{name}?width=x&height=1"),
            (400, "M_BAD_JSON"),
        ),
        (
            &alice,
            format!("{THUMBNAIL}/{name}?width=1&height=1"),
            (400, "M_UNKNOWN"),
        ),
        (
            &alice,
            "/_matrix/client/v1/media/preview_url?url=http%3A%2F%2Fx".to_owned(),
            (404, "M_NOT_FOUND"),
        ),
    ] {
        let response = get(client, &path, &[]).await;
        assert_refused(refusal(&response), expected);
    }
    let response = get(&alice, &format!("/_matrix/media/v3/download/{name}"), &[]).await;
    assert_eq!(response.body().as_ref(), b"0123456789");
    let config = alice.get_ok("/_matrix/client/v1/media/config").await;
    assert_eq!(config, json!({"m.upload.size": 10}));
}

#[tokio::test]
async fn names_that_are_filled_later() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let bob = cluster[0].register("bob").await;
    let created = alice.post_ok("/_matrix/media/v1/create", json!({})).await;
    let name = created["content_uri"]
        .as_str()
        .unwrap()
        .strip_prefix("mxc://")
        .unwrap()
        .to_owned();
    let (put, download) = (format!("{UPLOAD}/{name}"), format!("{DOWNLOAD}/{name}"));
    let response = get(&alice, &format!("{download}?timeout_ms=0"), &[]).await;
    assert_refused(refusal(&response), (504, "M_NOT_YET_UPLOADED"));
    let fill = async |client: &Client, path: &str| {
        let headers = [("content-type", "text/plain")];
        refusal(&client.raw_with(Method::PUT, path, &headers, b"late".to_vec()).await)
    };
    assert_refused(fill(&bob, &put).await, (403, "M_FORBIDDEN"));
    assert_refused(
        fill(&alice, &format!("{UPLOAD}/elsewhere/x")).await,
        (403, "M_FORBIDDEN"),
    );
    assert_refused(
        fill(&alice, &format!("{UPLOAD}/{}/x", cluster[0].name)).await,
        (404, "M_NOT_FOUND"),
    );
    // A download that waits is woken by the upload.
    let (waiting, filled) = tokio::join!(get(&bob, &download, &[]), fill(&alice, &put));
    assert_eq!(filled.0, StatusCode::OK);
    assert_eq!(waiting.body().as_ref(), b"late");
    assert_refused(fill(&alice, &put).await, (409, "M_CANNOT_OVERWRITE_MEDIA"));

    let created = alice.post_ok("/_matrix/media/v1/create", json!({})).await;
    let late = created["content_uri"]
        .as_str()
        .unwrap()
        .strip_prefix("mxc://")
        .unwrap()
        .to_owned();
    cluster.clock.advance(Duration::from_secs(24 * 60 * 60));
    assert_refused(fill(&alice, &format!("{UPLOAD}/{late}")).await, (404, "M_NOT_FOUND"));
    assert_refused(
        refusal(&get(&alice, &format!("{DOWNLOAD}/{late}"), &[]).await),
        (404, "M_NOT_FOUND"),
    );
    for _ in 0..50 {
        alice.post_ok("/_matrix/media/v1/create", json!({})).await;
    }
    assert_refused(
        alice.post("/_matrix/media/v1/create", json!({})).await,
        (429, "M_LIMIT_EXCEEDED"),
    );
    bob.post_ok("/_matrix/media/v1/create", json!({})).await;
}

#[tokio::test]
async fn thumbnails() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let opaque = upload(&alice, "", "image/png", &png(400, 200, 255)).await;
    let clear = upload(&alice, "", "image/png", &png(400, 200, 100)).await;
    let moving = upload(&alice, "", "image/gif", &gif(3)).await;
    let still = upload(&alice, "", "image/gif", &gif(1)).await;
    for (name, query, content_type, size) in [
        (&opaque, "width=32&height=32&method=scale", "image/jpeg", (32, 16)),
        (&opaque, "width=30&height=20", "image/jpeg", (32, 16)),
        (&opaque, "width=32&height=32&method=crop", "image/jpeg", (32, 32)),
        (&opaque, "width=320&height=240&method=crop", "image/jpeg", (320, 200)),
        (&opaque, "width=5000&height=5000", "image/jpeg", (400, 200)),
        (&clear, "width=96&height=96&method=scale", "image/png", (96, 48)),
        (&moving, "width=96&height=96&animated=true", "image/gif", (96, 48)),
        (&moving, "width=96&height=96&animated=false", "image/png", (96, 48)),
        (&still, "width=96&height=96&animated=true", "image/png", (96, 48)),
    ] {
        // Made first, kept then.
        for _ in 0..2 {
            let response = get(&alice, &format!("{THUMBNAIL}/{name}?{query}"), &[]).await;
            assert_eq!(response.status(), StatusCode::OK, "{query}: {:?}", response.body());
            assert_eq!(text(response.headers(), "content-type"), content_type, "{query}");
            assert_eq!(dimensions(response.body()), size, "{query}");
            let disposition = text(response.headers(), "content-disposition");
            assert!(disposition.starts_with("inline; filename=thumbnail."), "{disposition}");
        }
    }
}

#[tokio::test]
async fn images_that_bite() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let whole = png(64, 64, 255);
    // A header that promises 60,000 times 60,000 pixels over a few bytes.
    let mut huge = whole.clone();
    huge[16..20].copy_from_slice(&60_000_u32.to_be_bytes());
    huge[20..24].copy_from_slice(&60_000_u32.to_be_bytes());
    let checksum = crc32(&huge[12..29]);
    huge[29..33].copy_from_slice(&checksum.to_be_bytes());
    for (bytes, expected) in [
        (
            b"<svg xmlns='http://www.w3.org/2000/svg'/>".to_vec(),
            (400, "M_UNKNOWN"),
        ),
        (whole[..40].to_vec(), (400, "M_UNKNOWN")),
        (Vec::new(), (400, "M_UNKNOWN")),
        (huge, (413, "M_TOO_LARGE")),
    ] {
        let name = upload(&alice, "", "image/png", &bytes).await;
        let response = get(
            &alice,
            &format!("{THUMBNAIL}/{name}?width=9&height=9&animated=true"),
            &[],
        )
        .await;
        assert_refused(refusal(&response), expected);
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 }
        })
    })
}

#[tokio::test]
async fn other_servers_media_are_fetched_once_and_kept() {
    let cluster = Cluster::start(2).await;
    let alice = cluster[0].register("alice").await;
    let bob = cluster[1].register("bob").await;
    let bytes = png(200, 100, 255);
    let name = upload(&alice, "filename=a.png", "image/png", &bytes).await;
    let path = format!("{DOWNLOAD}/{name}");
    let (one, two) = tokio::join!(get(&bob, &path, &[]), get(&bob, &path, &[]));
    for response in [one, two] {
        assert_eq!(response.body().as_ref(), bytes);
        assert_eq!(text(response.headers(), "content-type"), "image/png");
        assert_eq!(
            text(response.headers(), "content-disposition"),
            "inline; filename=a.png"
        );
    }
    assert_eq!(cluster.wires.requests("/media/download/"), 1);
    cluster[0].go_down();
    assert_eq!(get(&bob, &path, &[]).await.body().as_ref(), bytes);
    let thumbnail = get(&bob, &format!("{THUMBNAIL}/{name}?width=32&height=32"), &[]).await;
    assert_eq!(dimensions(thumbnail.body()), (32, 16));
    let gone = format!("{DOWNLOAD}/{}/other", cluster[0].name);
    assert_refused(refusal(&get(&bob, &gone, &[]).await), (502, "M_UNKNOWN"));
    cluster[0].come_up();
    assert_refused(refusal(&get(&bob, &gone, &[]).await), (404, "M_NOT_FOUND"));
}

#[tokio::test]
async fn other_servers_thumbnails_can_be_asked_for() {
    use ruma::api::federation::authenticated_media::{FileOrLocation, get_content_thumbnail};

    let cluster = Cluster::start(2).await;
    let alice = cluster[0].register("alice").await;
    let name = upload(&alice, "", "image/png", &png(200, 100, 255)).await;
    let id = name.split_once('/').unwrap().1.to_owned();
    let request = get_content_thumbnail::v1::Request::new(id, 32_u32.into(), 32_u32.into());
    let context = &cluster[1].hs.context;
    let answer = crate::federation::client::request(context, &cluster[0].name, request)
        .await
        .unwrap();
    let FileOrLocation::File(content) = answer.content else {
        panic!("not a file");
    };
    assert_eq!(dimensions(&content.file), (32, 16));
    assert_eq!(content.content_type.as_deref(), Some("image/jpeg"));
}

/// A server whose file is not what its name says: the row speaks of another hash than the bytes have.
#[tokio::test]
async fn media_that_are_not_what_their_name_says_are_refused() {
    let cluster = Cluster::start(2).await;
    let alice = cluster[0].register("alice").await;
    let bob = cluster[1].register("bob").await;
    let name = upload(&alice, "", "text/plain", b"truth").await;
    let found = cluster[0]
        .hs
        .media
        .find_own(name.split_once('/').unwrap().1, Duration::ZERO)
        .await;
    std::fs::write(found.unwrap().path, b"falsh").unwrap();
    let response = get(&bob, &format!("{DOWNLOAD}/{name}"), &[]).await;
    assert_refused(refusal(&response), (502, "M_UNKNOWN"));
    assert_eq!(cluster.wires.requests("/media/download/"), 1);
}

#[tokio::test]
async fn fetched_media_make_room_for_newer_ones() {
    let mut cluster = Cluster::start(2).await;
    configure(&mut cluster, |config| config.max_fetched_media_bytes = 25);
    let alice = cluster[0].register("alice").await;
    let bob = cluster[1].register("bob").await;
    let mut names = Vec::new();
    for n in 0..4_u8 {
        names.push(upload(&bob, "", "text/plain", &[n; 10]).await);
    }
    let own = upload(&alice, "", "text/plain", &[9; 10]).await;
    for name in &names {
        get(&alice, &format!("{DOWNLOAD}/{name}"), &[]).await;
    }
    cluster[1].go_down();
    for (name, kept) in [
        (&names[0], false),
        (&names[1], false),
        (&names[2], true),
        (&names[3], true),
        (&own, true),
    ] {
        let status = get(&alice, &format!("{DOWNLOAD}/{name}"), &[]).await.status();
        assert_eq!(status == StatusCode::OK, kept, "{name}");
    }
    let files = walk(&cluster[0].hs.context.config.data.join("media"));
    assert_eq!(files, 3);
}

#[tokio::test]
async fn an_upload_that_is_cut_short_leaves_nothing() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let user = ruma::UserId::parse(&alice.user_id).unwrap();
    let body = futures::stream::iter([Ok(Bytes::from_static(b"half")), Err(std::io::Error::other("gone"))]);
    let error = cluster[0]
        .hs
        .media
        .upload(&user, Default::default(), body)
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            crate::Error::Refused {
                status: StatusCode::REQUEST_TIMEOUT,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(walk(&cluster[0].hs.context.config.data.join("media")), 0);
}

/// How many files a folder holds.
fn walk(folder: &std::path::Path) -> usize {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .map(|entry| if entry.path().is_dir() { walk(&entry.path()) } else { 1 })
        .sum()
}

proptest! {
    #[test]
    fn ids_promise_the_hash_they_were_made_of(hash: [u8; 32]) {
        prop_assert_eq!(super::promised_hash(&super::media_id(&hash)), Some(hash));
    }

    #[test]
    fn other_ids_promise_nothing_or_are_their_own_spelling(id in "[a-zA-Z0-9]{0,60}") {
        if let Some(hash) = super::promised_hash(&id) {
            prop_assert_eq!(super::media_id(&hash), id);
        }
    }
}
