// swift-tools-version: 5.9
// The Swift package of a Kith node. `make -C mobile swift` renews the generated sources; the static library is built per
// platform with `cargo build -p kith-ffi --release --target aarch64-apple-ios` and packed into KithFFI.xcframework.
import PackageDescription

let package = Package(
    name: "Kith",
    platforms: [.iOS(.v15), .macOS(.v12)],
    products: [.library(name: "Kith", targets: ["Kith"])],
    targets: [
        .target(name: "Kith", dependencies: ["KithFFI"]),
        .systemLibrary(name: "KithFFI", path: "Sources/KithFFI/include"),
    ]
)
