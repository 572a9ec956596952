//! The texts that docs/ promises, for tests that compare them with what users see.
//!
//! A block of texts is a fenced block below a line `<!-- texts: NAME -->`. The macro
//! [`documented!`] makes a test of each block of a page, and one that fails if a block has
//! none.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The lines of a page's block of texts.
#[track_caller]
pub fn block(page: &str, name: &str) -> Vec<String> {
    let text = read(page);
    let mark = format!("<!-- texts: {name} -->\n```text\n");
    let (_, rest) = text
        .split_once(&mark)
        .unwrap_or_else(|| panic!("docs/{page} has no block of texts {name:?}"));
    let (block, _) = rest.split_once("\n```").expect("a block ends");
    block.lines().map(str::to_owned).collect()
}

/// The names of a page's blocks of texts.
pub fn blocks(page: &str) -> BTreeSet<String> {
    let text = read(page);
    let names = text.lines().filter_map(|line| {
        let name = line.strip_prefix("<!-- texts: ")?;
        name.strip_suffix(" -->").map(str::to_owned)
    });
    names.collect()
}

fn read(page: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs")
        .join(page);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Tests every block of texts of a page: `documented!("page.md", name => check, ...)`, where
/// the check is a function that takes the block's lines.
macro_rules! documented {
    ($page:literal, $($name:ident => $check:expr),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                let check: fn(&[String]) = $check;
                check(&$crate::documented::block($page, stringify!($name)));
            }
        )*

        #[test]
        fn every_block_of_texts_is_tested() {
            let tested = [$(stringify!($name).to_owned()),*];
            assert_eq!($crate::documented::blocks($page), tested.into());
        }
    };
}
