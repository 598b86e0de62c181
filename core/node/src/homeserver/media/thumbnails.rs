//! Makes thumbnails, away from the async threads and under limits of bytes, pixels, memory and time: images come from
//! strangers.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Cursor, Read, Seek, SeekFrom},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use fast_image_resize::{ResizeOptions, Resizer};
use image::{
    AnimationDecoder as _, DynamicImage, Frame, Frames, ImageDecoder as _, ImageFormat, ImageReader, Limits,
    codecs::{
        gif::{GifDecoder, GifEncoder, Repeat},
        jpeg::JpegEncoder,
        png::PngDecoder,
        webp::WebPDecoder,
    },
};
use ruma::{api::error::ErrorKind, exports::http::StatusCode};
use tokio::sync::Semaphore;

use super::variant::{Fit, Variant};
use crate::{Error, clock::World};

/// Thumbnails made at once.
const AT_ONCE: usize = 2;
/// The largest file looked at, in bytes.
const LARGEST_FILE: u64 = 32 * 1024 * 1024;
/// The most pixels of an image, and of all frames of a moving one.
const PIXELS: u64 = 24 * 1024 * 1024;
/// The longest side of an image, in pixels.
const LONGEST_SIDE: u32 = 16 * 1024;
/// What a decoder may allocate, in bytes.
const MEMORY: u64 = 128 * 1024 * 1024;
/// How long reading an image may take.
const TIME: Duration = Duration::from_secs(10);
/// Frames of a moving thumbnail; images of more stand still.
const FRAMES: usize = 200;
/// The quality of thumbnails without transparency.
const JPEG_QUALITY: u8 = 80;

/// Makes thumbnails, a few at a time.
pub(super) struct Thumbnailer {
    places: Arc<Semaphore>,
}

/// A finished thumbnail.
pub(super) struct Made {
    pub(super) bytes: Bytes,
    pub(super) content_type: &'static str,
}

/// Why there is no thumbnail.
#[derive(Debug, thiserror::Error)]
enum Unmade {
    #[error("the file is too large for a thumbnail")]
    TooLarge,
    #[error("that kind of file has no thumbnail")]
    Unsupported,
    #[error("the image is damaged: {0}")]
    Damaged(#[from] image::ImageError),
    #[error("the image cannot be resized: {0}")]
    Resize(#[from] fast_image_resize::ResizeError),
    #[error("the file cannot be read: {0}")]
    Io(#[from] io::Error),
}

impl Default for Thumbnailer {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }
}

impl Thumbnailer {
    pub(super) async fn make(&self, world: &World, path: PathBuf, variant: Variant) -> Result<Made, Error> {
        let place = Arc::clone(&self.places).acquire_owned().await;
        let place = place.map_err(|error| Error::Internal("thumbnails are closed", Some(Box::new(error))))?;
        // The place is given back when the work ends, even if whoever asked has gone.
        let work = world.compute(move || {
            let _place = place;
            make(path, variant)
        });
        match work.await {
            Ok(made) => made.map_err(refuse),
            // A decoder that panics has met a damaged image, as far as anyone else is concerned.
            Err(_) => Err(refuse(Unmade::Unsupported)),
        }
    }
}

/// Client-server API, `GET thumbnail`: 413 for what is too large, 400 for what makes no sense to thumbnail.
fn refuse(unmade: Unmade) -> Error {
    match unmade {
        Unmade::TooLarge | Unmade::Damaged(image::ImageError::Limits(_)) => Error::refused(
            StatusCode::PAYLOAD_TOO_LARGE,
            ErrorKind::TooLarge,
            Unmade::TooLarge.to_string(),
        ),
        Unmade::Io(error) => Error::Internal("a media file could not be read", Some(Box::new(error))),
        other => Error::refused(StatusCode::BAD_REQUEST, ErrorKind::Unknown, other.to_string()),
    }
}

fn make(path: PathBuf, variant: Variant) -> Result<Made, Unmade> {
    if std::fs::metadata(&path)?.len() > LARGEST_FILE {
        return Err(Unmade::TooLarge);
    }
    let deadline = Instant::now() + TIME;
    let open = || Ok::<_, io::Error>(Timed::new(File::open(&path)?, deadline));
    let format = ImageReader::new(open()?).with_guessed_format()?.format();
    let format = format.ok_or(Unmade::Unsupported)?;
    if variant.animated
        && let Some(made) = make_moving(open()?, format, variant, deadline)?
    {
        return Ok(made);
    }
    make_still(open()?, format, variant)
}

fn make_still(reader: Timed, format: ImageFormat, variant: Variant) -> Result<Made, Unmade> {
    let mut reader = ImageReader::with_format(reader, format);
    reader.limits(limits());
    let mut decoder = reader.into_decoder()?;
    check_pixels(decoder.dimensions())?;
    let orientation = decoder.orientation()?;
    let mut image = DynamicImage::from_decoder(decoder)?;
    image.apply_orientation(orientation);
    let small = fit(image, variant, &mut Resizer::new())?;
    let mut bytes = Cursor::new(Vec::new());
    let content_type = if small.color().has_alpha() {
        small.write_to(&mut bytes, ImageFormat::Png)?;
        "image/png"
    } else {
        small
            .to_rgb8()
            .write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY))?;
        "image/jpeg"
    };
    Ok(Made {
        bytes: bytes.into_inner().into(),
        content_type,
    })
}

/// A moving thumbnail; none for an image that does not move, or moves too long.
fn make_moving(
    reader: Timed,
    format: ImageFormat,
    variant: Variant,
    deadline: Instant,
) -> Result<Option<Made>, Unmade> {
    let Some((frames, (width, height))) = frames(reader, format)? else {
        return Ok(None);
    };
    check_pixels((width, height))?;
    let most = (PIXELS / u64::from(width).saturating_mul(u64::from(height)).max(1)).min(FRAMES as u64);
    let mut resizer = Resizer::new();
    let mut small = Vec::new();
    for frame in frames {
        let frame = frame?;
        if small.len() as u64 >= most || Instant::now() > deadline {
            return Ok(None);
        }
        let delay = frame.delay();
        let image = fit(DynamicImage::ImageRgba8(frame.into_buffer()), variant, &mut resizer)?;
        small.push(Frame::from_parts(image.into_rgba8(), 0, 0, delay));
    }
    if small.len() < 2 {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    // The fastest of thirty speeds but ten: colours are chosen well enough for a small image.
    let mut encoder = GifEncoder::new_with_speed(&mut bytes, 20);
    encoder.set_repeat(Repeat::Infinite)?;
    encoder.encode_frames(small)?;
    drop(encoder);
    Ok(Some(Made {
        bytes: bytes.into(),
        content_type: "image/gif",
    }))
}

type Moving = Option<(Frames<'static>, (u32, u32))>;

fn frames(reader: Timed, format: ImageFormat) -> Result<Moving, Unmade> {
    Ok(match format {
        ImageFormat::Gif => {
            let mut decoder = GifDecoder::new(reader)?;
            decoder.set_limits(limits())?;
            let size = decoder.dimensions();
            Some((decoder.into_frames(), size))
        }
        ImageFormat::WebP => {
            let mut decoder = WebPDecoder::new(reader)?;
            decoder.set_limits(limits())?;
            let size = decoder.dimensions();
            decoder.has_animation().then(|| (decoder.into_frames(), size))
        }
        ImageFormat::Png => {
            let decoder = PngDecoder::with_limits(reader, limits())?;
            let size = decoder.dimensions();
            match decoder.is_apng()? {
                true => Some((decoder.apng()?.into_frames(), size)),
                false => None,
            }
        }
        _ => None,
    })
}

/// Makes an image small. One that is small enough already stays as it is: it is never blown up.
fn fit(image: DynamicImage, variant: Variant, resizer: &mut Resizer) -> Result<DynamicImage, Unmade> {
    let (width, height) = (image.width().max(1), image.height().max(1));
    let (to_width, to_height) = match variant.fit {
        Fit::Crop => (variant.width.min(width), variant.height.min(height)),
        Fit::Scale => scaled((width, height), (variant.width, variant.height)),
    };
    if (to_width, to_height) == (width, height) {
        return Ok(image);
    }
    // The resizer knows fewer kinds of pixels than the decoders.
    let image = match image.color().has_alpha() {
        true => DynamicImage::ImageRgba8(image.into_rgba8()),
        false => DynamicImage::ImageRgb8(image.into_rgb8()),
    };
    let mut small = DynamicImage::new(to_width, to_height, image.color());
    let options = match variant.fit {
        Fit::Crop => ResizeOptions::new().fit_into_destination(None),
        Fit::Scale => ResizeOptions::new(),
    };
    resizer.resize(&image, &mut small, &options)?;
    Ok(small)
}

/// The largest size in an image's own proportions that fits into another, and is no larger than the image.
fn scaled((width, height): (u32, u32), (most_width, most_height): (u32, u32)) -> (u32, u32) {
    if width <= most_width && height <= most_height {
        return (width, height);
    }
    let (w, h) = (u64::from(width), u64::from(height));
    let (mw, mh) = (u64::from(most_width), u64::from(most_height));
    let (to_width, to_height) = if w * mh > h * mw {
        (mw, h * mw / w)
    } else {
        (w * mh / h, mh)
    };
    let side = |length: u64| u32::try_from(length.max(1)).unwrap_or(u32::MAX);
    (side(to_width), side(to_height))
}

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_image_width = Some(LONGEST_SIDE);
    limits.max_image_height = Some(LONGEST_SIDE);
    limits.max_alloc = Some(MEMORY);
    limits
}

fn check_pixels((width, height): (u32, u32)) -> Result<(), Unmade> {
    if u64::from(width) * u64::from(height) > PIXELS {
        return Err(Unmade::TooLarge);
    }
    Ok(())
}

/// A file that cannot be read after a deadline, so that no decoder goes on for ever.
struct Timed {
    file: BufReader<File>,
    deadline: Instant,
}

impl Timed {
    fn new(file: File, deadline: Instant) -> Self {
        Self {
            file: BufReader::new(file),
            deadline,
        }
    }

    fn check(&self) -> io::Result<()> {
        if Instant::now() > self.deadline {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "decoding takes too long"));
        }
        Ok(())
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        self.file.read(buffer)
    }
}

impl BufRead for Timed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.check()?;
        self.file.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.file.consume(amount);
    }
}

impl Seek for Timed {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.check()?;
        self.file.seek(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaling_keeps_proportions_and_never_enlarges() {
        for (image, into, expected) in [
            ((100, 50), (32, 32), (32, 16)),
            ((50, 100), (32, 32), (16, 32)),
            ((10, 10), (32, 32), (10, 10)),
            ((10_000, 1), (32, 32), (32, 1)),
            ((640, 480), (320, 240), (320, 240)),
            ((u32::MAX, u32::MAX), (800, 600), (600, 600)),
        ] {
            assert_eq!(scaled(image, into), expected, "{image:?} into {into:?}");
        }
    }
}
