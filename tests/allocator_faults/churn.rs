//! `sgp dev --churn`: pods come and go while the allocator is killed, and nothing leaks.

use std::process::{Command, Output};

use crate::stage::place;

async fn churn(arguments: &[&str]) -> Output {
    let _place = place().await;
    Command::new(env!("CARGO_BIN_EXE_sgp"))
        .args(["dev", "--exit"])
        .args(arguments)
        .output()
        .unwrap()
}

/// The number in the first column of the line of this name.
#[track_caller]
fn number(table: &str, name: &str) -> u64 {
    let line = table
        .lines()
        .find_map(|line| line.trim().strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .unwrap_or_else(|| panic!("no line {name:?} in\n{table}"))
        .parse()
        .unwrap()
}

#[tokio::test]
async fn nothing_leaks_where_pods_come_and_go_and_the_allocator_is_killed() {
    let arguments = ["--churn=100", "--kills=3", "--nodes=m5.large=5", "--seed=7"];
    let output = churn(&arguments).await;
    let table = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);

    assert!(output.status.success(), "{table}\n{error}");
    assert_eq!(number(&table, "created"), 100, "{table}");
    assert!(number(&table, "deleted") > 50, "{table}");
    assert_eq!(
        number(&table, "trunks (nodes that take part)"),
        5,
        "{table}"
    );
    let living = number(&table, "branches (living pods that need one)");
    assert!(living <= number(&table, "running"), "{table}");
    // A creation that the kill has interrupted is repeated with the same token.
    assert!(
        number(&table, "CreateNetworkInterface") >= 5 + living,
        "{table}"
    );
    assert!(number(&table, "DeleteNetworkInterface") > 0, "{table}");
    assert!(table.contains("Nothing is wrong."), "{table}");
}

#[tokio::test]
async fn churn_without_nodes_that_take_pods_is_refused_with_a_way_out() {
    let output = churn(&["--churn=1", "--nodes=none"]).await;
    let error = String::from_utf8_lossy(&output.stderr);

    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.contains("give --nodes, such as m5.large=5"),
        "{error}"
    );
}
