//! A panic anywhere in the daemon is seen: it ends the attempt, or the process, and the log says
//! where it was but none of the values it was about.

use std::time::Duration;

use crate::support::{Daemon, Family, Scenario, eventually};

static FAMILY: Family = Family::const_new();

/// What must come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    Attempt(&'static str),
    Process,
}

#[tokio::test]
async fn a_panic_is_seen_and_passes() {
    for (number, (point, ends)) in [
        ("receive.read", Ends::Attempt("receiver ended unexpectedly")),
        (
            "receive.status_due",
            Ends::Attempt("receiver ended unexpectedly"),
        ),
        ("copy.range_begun", Ends::Attempt("worker")),
        ("follow.taken", Ends::Attempt("the pipeline has panicked")),
        ("apply.written", Ends::Attempt("the pipeline has panicked")),
        // It never ran: whoever started it reads.
        ("start.locked", Ends::Process),
    ]
    .into_iter()
    .enumerate()
    {
        let s = Scenario::new(&FAMILY, &format!("panic_{number}")).await;
        s.on_both("CREATE TABLE t (id int PRIMARY KEY)").await;
        s.on_source("INSERT INTO t VALUES (1)").await;
        s.publish_all().await;
        let config = s.config("");
        let order = format!("{point}=panic");
        let mut daemon = Daemon::start_with(&config, &[("PGLOCKSTEP_FAULTS", &order)]);
        let panicked = |daemon: &Daemon| daemon.stderr().contains("a task has panicked");
        eventually(
            "a panic",
            || daemon.stderr(),
            async || {
                // Changes, for the points that only changes pass.
                let _ = s
                    .source
                    .execute("INSERT INTO t SELECT max(id) + 1 FROM t", &[])
                    .await;
                tokio::time::sleep(Duration::from_millis(50)).await;
                panicked(&daemon).then_some(())
            },
        )
        .await;
        match ends {
            Ends::Process => {
                assert!(!daemon.wait().success(), "{point}");
            }
            Ends::Attempt(says) => {
                daemon.until_said(says).await;
            }
        }
        let said = daemon.stderr();
        assert!(said.contains("src/faults.rs"), "{point}: {said}");
        let values = |said: &str| said.contains("a value at");
        assert!(!values(&said), "{point}: {said}");
        if ends == Ends::Process {
            daemon = Daemon::start(&config);
        }
        s.until_state(&mut daemon, "streaming").await;
        s.on_source("INSERT INTO t VALUES (1000000)").await;
        s.replica_eventually("SELECT max(id) FROM t", "1000000")
            .await;
        assert!(daemon.terminate().success(), "{}", daemon.stderr());
        // Errors of the attempts are told a moment after the panic.
        assert!(!values(&daemon.stderr()), "{point}: {}", daemon.stderr());
    }
}
