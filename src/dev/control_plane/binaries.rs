//! Where the control plane's programs come from.
//!
//! A folder in `KUBEBUILDER_ASSETS` wins. Otherwise they are built from Go modules, once for
//! each state of `modules/`, into this user's cache folder, where every clone finds them.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::go_build::{self, Toolchain};

/// The programs of a control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    /// The store.
    pub etcd: PathBuf,
    /// The API server.
    pub kube_apiserver: PathBuf,
    /// The controllers: service accounts, garbage collection, replica sets and so on.
    pub kube_controller_manager: PathBuf,
    /// The command line.
    pub kubectl: PathBuf,
    /// The scheduler, where the folder has one.
    pub kube_scheduler: Option<PathBuf>,
    /// What stands in for kubelets, where the folder has it.
    pub kwok: Option<PathBuf>,
}

/// Why there are no programs to start.
#[derive(Debug, thiserror::Error)]
pub enum BinariesError {
    /// A folder that was given lacks a program.
    #[error("{folder} has no {missing}")]
    Incomplete {
        /// The folder that was looked into.
        folder: PathBuf,
        /// The program that is not there.
        missing: &'static str,
    },
    /// `KUBEBUILDER_ASSETS` is set to a folder that lacks a program.
    #[error(
        "KUBEBUILDER_ASSETS is set to {folder}, which has no {missing}\n\
         Unset it to build all of the control plane from Go modules, or add the program \
         (the folders that setup-envtest makes come without kube-controller-manager)."
    )]
    AssetsIncomplete {
        /// The folder in the variable.
        folder: PathBuf,
        /// The program that is not there.
        missing: &'static str,
    },
    /// This user has no cache folder.
    #[error("no cache folder is known, because HOME is not set; set SGP_CACHE_DIR to a folder")]
    NoCacheFolder,
    /// The cache folder cannot be used.
    #[error("cannot use {path} in the cache (SGP_CACHE_DIR chooses another folder)")]
    Cache {
        /// What could not be read or written.
        path: PathBuf,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// There is no Go to build with.
    #[error(
        "the Kubernetes control plane is built from Go modules, and there is no `go` command\n\
         Either install Go {needed} or later (from https://go.dev/dl or your distribution's package),\n\
         or set KUBEBUILDER_ASSETS to a folder with etcd, kube-apiserver, kube-controller-manager \
         and kubectl (setup-envtest makes one; it lacks kube-controller-manager, so add that)."
    )]
    GoMissing {
        /// The oldest version that will do.
        needed: String,
    },
    /// The installed Go cannot build this Kubernetes.
    #[error(
        "the Kubernetes control plane needs Go {needed} or later, and `go` is {found}\n\
         Either install a newer one (from https://go.dev/dl), let Go fetch it \
         (GOTOOLCHAIN=auto), or set KUBEBUILDER_ASSETS to a folder with the built programs."
    )]
    GoTooOld {
        /// The installed version.
        found: String,
        /// The oldest version that will do.
        needed: String,
    },
    /// Go could not build the modules.
    #[error(
        "building the Kubernetes control plane failed; the last lines of `go build`:\n{output}"
    )]
    BuildFailed {
        /// The end of what `go build` wrote.
        output: String,
    },
}

impl Binaries {
    /// Finds the programs, or builds them, which takes about five minutes once.
    ///
    /// Shows progress on stderr while it builds. Blocks; call it outside of async tasks.
    ///
    /// # Errors
    ///
    /// When a given folder is incomplete or the programs cannot be built. The message says
    /// what to do about it.
    pub fn find_or_build() -> Result<Self, BinariesError> {
        match variable("KUBEBUILDER_ASSETS") {
            Some(folder) => Self::in_assets_folder(Path::new(&folder)),
            None => Self::in_cache(&cache_folder()?, &Toolchain::default()),
        }
    }

    fn in_assets_folder(folder: &Path) -> Result<Self, BinariesError> {
        Self::in_folder(folder).map_err(|error| match error {
            BinariesError::Incomplete { folder, missing } => {
                BinariesError::AssetsIncomplete { folder, missing }
            }
            other => other,
        })
    }

    /// The programs in a folder.
    ///
    /// # Errors
    ///
    /// [`BinariesError::Incomplete`] when one that cannot be done without is not there.
    pub fn in_folder(folder: &Path) -> Result<Self, BinariesError> {
        let find = |name| Some(folder.join(name)).filter(|path| path.is_file());
        let needed = |missing| {
            find(missing).ok_or_else(|| BinariesError::Incomplete {
                folder: folder.to_owned(),
                missing,
            })
        };
        Ok(Self {
            etcd: needed("etcd")?,
            kube_apiserver: needed("kube-apiserver")?,
            kube_controller_manager: needed("kube-controller-manager")?,
            kubectl: needed("kubectl")?,
            kube_scheduler: find("kube-scheduler"),
            kwok: find("kwok"),
        })
    }

    /// The programs in the cache, after building them if they are not there.
    fn in_cache(cache: &Path, toolchain: &Toolchain) -> Result<Self, BinariesError> {
        let name = format!("control-plane-{}", build_hash());
        let folder = cache.join(&name);
        if let Ok(binaries) = Self::in_folder(&folder) {
            return Ok(binaries);
        }

        fs::create_dir_all(cache).map_err(in_cache(cache))?;
        let _lock = lock(&cache.join(format!("{name}.lock")))?;
        // Another process may have built them while this one waited for the lock.
        if let Ok(binaries) = Self::in_folder(&folder) {
            return Ok(binaries);
        }
        let prefix = format!("{name}.building-");
        remove_leftovers(cache, &name, &prefix).map_err(in_cache(cache))?;
        go_build::build(toolchain, cache, &prefix, &folder)?;
        Self::in_folder(&folder)
    }
}

/// Turns an I/O error into one that names the place.
pub(super) fn in_cache(path: &Path) -> impl FnOnce(io::Error) -> BinariesError {
    let path = path.to_owned();
    |source| BinariesError::Cache { path, source }
}

fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

fn cache_folder() -> Result<PathBuf, BinariesError> {
    variable("SGP_CACHE_DIR")
        .map(PathBuf::from)
        .or_else(|| Some(dirs::cache_dir()?.join("sgp")))
        .ok_or(BinariesError::NoCacheFolder)
}

/// Names a build: the same modules, flags and kind of machine give the same programs.
fn build_hash() -> String {
    let mut hash = Sha256::new();
    for part in [
        go_build::GO_MOD,
        go_build::GO_SUM,
        &go_build::flags().join(" "),
    ] {
        hash.update(part);
        hash.update([0]);
    }
    // A home folder may be shared by machines of different kinds.
    hash.update(env::consts::OS);
    hash.update(env::consts::ARCH);
    hash.finalize()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Lets one process build at a time. The lock goes with the file, and the file stays: a
/// process that waits on a removed file would build beside one that locks a new file.
fn lock(path: &Path) -> Result<File, BinariesError> {
    let open = || {
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
    };
    let file = open().map_err(in_cache(path))?;
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            eprintln!("waiting for another process that builds the Kubernetes control plane");
            file.lock()
        }
        Err(TryLockError::Error(error)) => Err(error),
    }
    .map_err(in_cache(path))?;
    Ok(file)
}

/// Removes what a power failure or a damaged build left, under the lock.
fn remove_leftovers(cache: &Path, name: &str, prefix: &str) -> io::Result<()> {
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        let found = entry.file_name();
        let found = found.to_string_lossy();
        if found == name || found.starts_with(prefix) {
            match fs::remove_dir_all(entry.path()) {
                // The watchdog of a killed build is removing it at the same time.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => result?,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stands in for Go: counts its builds and makes empty programs.
    const BUILDS: &str = r#"
        case "$1" in
        env) echo go1.99.1 ;;
        build)
            echo x >> "$COUNT"
            sleep 0.2
            cd bin
            touch server kube-apiserver kube-controller-manager kube-scheduler kubectl kwok ;;
        esac"#;

    fn entries(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_build_is_named_by_its_modules() {
        let hash = build_hash();

        assert_eq!(hash, build_hash());
        assert_eq!(hash.len(), 16);
        assert!(hash.chars().all(|digit| digit.is_ascii_hexdigit()));
    }

    #[test]
    fn an_incomplete_assets_folder_is_named_with_what_it_lacks() {
        let folder = tempfile::tempdir().unwrap();
        for program in ["etcd", "kube-apiserver", "kubectl"] {
            fs::write(folder.path().join(program), "").unwrap();
        }

        let error = Binaries::in_assets_folder(folder.path())
            .unwrap_err()
            .to_string();

        assert!(error.contains("has no kube-controller-manager"), "{error}");
        assert!(error.contains(folder.path().to_str().unwrap()), "{error}");
        assert!(error.contains("KUBEBUILDER_ASSETS"), "{error}");
    }

    #[test]
    fn scheduler_and_kwok_may_be_missing() {
        let folder = tempfile::tempdir().unwrap();
        for program in [
            "etcd",
            "kube-apiserver",
            "kube-controller-manager",
            "kubectl",
        ] {
            fs::write(folder.path().join(program), "").unwrap();
        }

        let binaries = Binaries::in_folder(folder.path()).unwrap();

        assert_eq!((binaries.kube_scheduler, binaries.kwok), (None, None));
    }

    #[test]
    fn processes_that_need_a_build_at_once_share_one() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("cache");
        let count = folder.path().join("count");
        let toolchain = Toolchain::script(&format!("COUNT={}\n{BUILDS}", count.display()));

        let found: Vec<Binaries> = std::thread::scope(|scope| {
            let build = || Binaries::in_cache(&cache, &toolchain).unwrap();
            let builds: Vec<_> = (0..3).map(|_| scope.spawn(build)).collect();
            builds
                .into_iter()
                .map(|build| build.join().unwrap())
                .collect()
        });

        assert_eq!(fs::read_to_string(count).unwrap(), "x\n", "built once");
        assert_eq!(found[0], found[2]);
        assert_eq!(
            entries(&cache).len(),
            2,
            "the programs and the lock: {:?}",
            entries(&cache)
        );
    }

    #[test]
    fn a_damaged_build_is_built_again() {
        let folder = tempfile::tempdir().unwrap();
        let count = folder.path().join("count");
        let toolchain = Toolchain::script(&format!("COUNT={}\n{BUILDS}", count.display()));
        let binaries = Binaries::in_cache(folder.path(), &toolchain).unwrap();
        fs::remove_file(&binaries.etcd).unwrap();

        Binaries::in_cache(folder.path(), &toolchain).unwrap();

        assert!(binaries.etcd.is_file());
    }

    #[test]
    fn a_failed_build_shows_why_and_leaves_nothing() {
        let cache = tempfile::tempdir().unwrap();
        let toolchain = Toolchain::script(
            r#"if [ "$1" = env ]; then echo go1.99; else echo "no space left" >&2; exit 1; fi"#,
        );

        let error = Binaries::in_cache(cache.path(), &toolchain).unwrap_err();

        assert!(error.to_string().contains("no space left"), "{error}");
        let left = entries(cache.path());
        assert!(left.iter().all(|name| name.ends_with(".lock")), "{left:?}");
    }

    #[test]
    fn without_go_the_error_names_the_ways_out() {
        let cache = tempfile::tempdir().unwrap();
        let toolchain = Toolchain::program("no-such-program-go");

        let error = Binaries::in_cache(cache.path(), &toolchain)
            .unwrap_err()
            .to_string();

        for way_out in [
            "install Go 1.26",
            "go.dev",
            "KUBEBUILDER_ASSETS",
            "setup-envtest",
        ] {
            assert!(error.contains(way_out), "`{way_out}` is not in: {error}");
        }
    }

    #[test]
    fn a_go_that_is_too_old_is_told_apart() {
        let cache = tempfile::tempdir().unwrap();
        // What `go env` does beside a newer go.mod when GOTOOLCHAIN is `local`.
        let toolchain = Toolchain::script(
            r#"if [ -e go.mod ]; then echo "go.mod requires go >= 1.26.0" >&2; exit 1; fi; echo go1.22.2"#,
        );

        let error = Binaries::in_cache(cache.path(), &toolchain)
            .unwrap_err()
            .to_string();

        assert!(error.contains("needs Go 1.26"), "{error}");
        assert!(error.contains("`go` is go1.22.2"), "{error}");
    }
}
