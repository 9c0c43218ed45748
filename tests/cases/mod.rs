//! The cases that have cost others data, by letter and number, on every major version.
//!
//! ```text
//!  catalogue ─▶ letter.rs: a4_… ─▶ one database and one daemon a case ─▶ both sides compared
//!      │                           a pair of clusters a version, a few cases at a time
//!      └─▶ or the test elsewhere that covers it, or why nobody does
//! ```
//!
//! A case fails by itself: the others of its version run on, and all that failed are told
//! together, each by its id and version with what differed. `PGLOCKSTEP_CASES=a4,f` runs these
//! only; `PGLOCKSTEP_SOAK=1` runs all of them on every version.

mod a_rows_and_keys;
mod b_toast;
mod c_values;
mod catalogue;
mod d_transactions;
mod e_truncate;
mod f_columns;
mod f_publication;
mod f_tables;
mod f_types_and_keys;
mod g_partitions;
pub mod ground;
mod h_filters;
mod i_copy;
mod j_replica;
mod k_names;
mod runner;

use runner::{Case, run};

fn all() -> Vec<&'static Case> {
    [
        a_rows_and_keys::CASES,
        b_toast::CASES,
        c_values::CASES,
        d_transactions::CASES,
        e_truncate::CASES,
        f_columns::CASES,
        f_types_and_keys::CASES,
        f_tables::CASES,
        f_publication::CASES,
        g_partitions::CASES,
        h_filters::CASES,
        i_copy::CASES,
        j_replica::CASES,
        k_names::CASES,
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[tokio::test]
async fn on_14() {
    run(14, 14).await;
}

#[tokio::test]
async fn on_15() {
    run(15, 15).await;
}

#[tokio::test]
async fn on_16() {
    run(16, 16).await;
}

#[tokio::test]
async fn on_17() {
    run(17, 17).await;
}

#[tokio::test]
async fn on_18() {
    run(18, 18).await;
}

#[tokio::test]
async fn from_14_to_18() {
    run(14, 18).await;
}

#[tokio::test]
async fn from_18_to_14() {
    run(18, 14).await;
}
