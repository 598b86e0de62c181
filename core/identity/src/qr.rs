//! QR codes of tickets, as text for a terminal, SVG for a page and PNG for everything else. They hold any text; whether
//! it is a ticket is not looked at.

use std::io::Cursor;

use image::{ImageFormat, Luma};
use qrcode::{
    EcLevel, QrCode,
    render::{svg, unicode::Dense1x2},
};

/// Why a text has no QR code.
#[derive(Debug, thiserror::Error)]
pub enum QrError {
    /// The text does not fit the largest QR code.
    #[error("the text does not fit a QR code")]
    TooLong(#[source] qrcode::types::QrError),
    /// The image could not be written.
    #[error("the QR code could not be written as PNG")]
    Png(#[source] image::ImageError),
}

/// Two rows to a line, in half blocks, with the quiet zone; dark modules are left empty, because terminals are mostly
/// dark.
pub fn qr_text(text: &str) -> Result<String, QrError> {
    // A terminal is narrow and its picture is sharp: the lowest correction level gives the smallest code.
    let code = QrCode::with_error_correction_level(text, EcLevel::L).map_err(QrError::TooLong)?;
    Ok(code
        .render::<Dense1x2>()
        .dark_color(Dense1x2::Light)
        .light_color(Dense1x2::Dark)
        .build())
}

/// A standalone SVG image, at least 288 units wide, black on white.
pub fn qr_svg(text: &str) -> Result<String, QrError> {
    let code = QrCode::with_error_correction_level(text, EcLevel::M).map_err(QrError::TooLong)?;
    Ok(code
        .render::<svg::Color<'_>>()
        .min_dimensions(288, 288)
        .dark_color(svg::Color("#000000"))
        .light_color(svg::Color("#ffffff"))
        .build())
}

/// A PNG image, at least 512 pixels wide, black on white.
pub fn qr_png(text: &str) -> Result<Vec<u8>, QrError> {
    let code = QrCode::with_error_correction_level(text, EcLevel::M).map_err(QrError::TooLong)?;
    let image = code.render::<Luma<u8>>().min_dimensions(512, 512).build();
    let mut png = Cursor::new(Vec::new());
    image.write_to(&mut png, ImageFormat::Png).map_err(QrError::Png)?;
    Ok(png.into_inner())
}
