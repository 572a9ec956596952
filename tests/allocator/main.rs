//! What the allocator does for pods and nodes: the real control plane, scheduler and program,
//! with the simulated EC2.

#[path = "../support/stage.rs"]
mod stage;

mod capacity;
mod cooldown;
mod custom_networking;
mod enforcement;
mod groups;
mod life;
mod names;
mod nodes;
mod settings;

use tokio::sync::OnceCell;

use stage::{Setting, Stage};

/// The stage of the tests that disturb no others: each has a namespace and nodes of its own.
/// It ends with this process.
async fn shared() -> &'static Stage {
    static STAGE: OnceCell<Stage> = OnceCell::const_new();
    let setting = || Setting {
        nodes: Vec::new(),
        ..Setting::with_long_lease()
    };
    STAGE.get_or_init(|| Stage::start(setting())).await
}
