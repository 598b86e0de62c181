//! Writes the Kotlin, Swift and Python sources that call this crate: uniffi's own command line, at the library's version.

fn main() {
    uniffi::uniffi_bindgen_main();
}
