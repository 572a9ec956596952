//! Who is still there. Linux only, for it reads `/proc`.

use std::fs;
use std::path::Path;

/// The command lines of the processes that work in this folder or were started with it.
pub fn processes_of(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().expect("a path that is text");
    let processes = fs::read_dir("/proc").expect("Linux").flatten();
    let concerned = processes.filter_map(|entry| {
        let arguments = fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&arguments).replace('\0', " ");
        let works_in = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        let is_concerned = line.contains(folder) || works_in.to_string_lossy().contains(folder);
        is_concerned.then_some(line)
    });
    concerned.collect()
}
