//! The ways in which thumbnails are made: few, so that nobody can fill the disk by asking for odd sizes.

/// How an image is made to fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// As large as fits into the size, in its own proportions.
    Scale,
    /// Exactly the size, cut off where it sticks out.
    Crop,
}

/// One way of making a thumbnail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variant {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// How it is made to fit.
    pub fit: Fit,
    /// Whether moving images may move.
    pub animated: bool,
}

/// The sizes that the specification recommends. Client-server API, "Thumbnails".
const SIZES: [(u32, u32); 5] = [(32, 32), (96, 96), (320, 240), (640, 480), (800, 600)];

impl Variant {
    /// The smallest of the fixed sizes that is no smaller than what is asked for, or the largest.
    pub fn at_least(width: u32, height: u32, fit: Fit, animated: bool) -> Self {
        let [.., largest] = SIZES;
        let fits = |&(w, h): &(u32, u32)| w >= width && h >= height;
        let (width, height) = SIZES.into_iter().find(fits).unwrap_or(largest);
        Self {
            width,
            height,
            fit,
            animated,
        }
    }

    /// How the store names it.
    pub(super) fn name(&self) -> String {
        let fit = match self.fit {
            Fit::Scale => "scale",
            Fit::Crop => "crop",
        };
        let animated = if self.animated { "-animated" } else { "" };
        format!("{}x{}-{fit}{animated}", self.width, self.height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_sizes_get_the_next_fixed_one() {
        for (asked, given) in [
            ((1, 1), (32, 32)),
            ((32, 32), (32, 32)),
            ((33, 1), (96, 96)),
            ((200, 200), (320, 240)),
            ((300, 300), (640, 480)),
            ((u32::MAX, 1), (800, 600)),
        ] {
            let variant = Variant::at_least(asked.0, asked.1, Fit::Scale, false);
            assert_eq!((variant.width, variant.height), given, "{asked:?}");
        }
    }
}
