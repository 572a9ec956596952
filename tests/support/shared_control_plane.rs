//! One control plane for all tests of a program, which each use objects of their own.

use std::sync::LazyLock;
use std::thread;

use sgp::dev::control_plane::{Binaries, ControlPlane, Options};

/// Ends with this process.
pub static CONTROL_PLANE: LazyLock<ControlPlane> = LazyLock::new(|| {
    // On a thread of its own, because the first to use it may be in a runtime already.
    let starter = thread::spawn(|| {
        let binaries = Binaries::find_or_build().unwrap_or_else(|error| panic!("{error}"));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(ControlPlane::start(&binaries, Options::default()))
    });
    let control_plane = starter.join().expect("the starter does not panic");
    control_plane.unwrap_or_else(|error| panic!("{error}"))
});
