//! A source that is told to stop: it waits for us until all that it has sent is durable on the
//! replica, and where that cannot be we let it go. That it stops at all is the test: a cluster
//! that does not within a minute is an error.

use pglockstep::demo::cluster::StopMode;

use super::load::prepare;
use super::says;
use crate::support::{Pair, Scenario};

const NAME: &str = "lets_go";
const LET_GO: &str = "it is let go";

#[tokio::test]
async fn a_source_that_stops_waits_for_what_can_become_durable_and_for_no_more() {
    let mut pair = Pair::start().await;
    let s = Scenario::on_pair(&pair, NAME).await;
    prepare(&s, 10).await;
    for is_locked in [false, true] {
        let s = Scenario::again(&pair, NAME).await;
        let mut daemon = s.start("").await;
        s.until_state(&mut daemon, "streaming").await;
        drop(s);
        let holder = pair.replica.connect(NAME).await.unwrap();
        if is_locked {
            holder
                .batch_execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
                .await
                .unwrap();
        }
        let source = pair.source.connect(NAME).await.unwrap();
        source
            .batch_execute("INSERT INTO t SELECT count(*), 'last words' FROM t")
            .await
            .unwrap();
        drop(source);
        pair.source.stop(StopMode::Fast).await.unwrap();
        if is_locked {
            holder.batch_execute("COMMIT").await.unwrap();
        } else {
            let sql =
                "SELECT count(*) FROM t WHERE v = 'last words' AND id = (SELECT max(id) FROM t)";
            let row = holder.query_one(sql, &[]).await.unwrap();
            assert_eq!(row.get::<_, i64>(0), 1);
        }
        says(&daemon, "cannot connect to the source").await;
        let said = daemon.stderr();
        assert_eq!(said.contains(LET_GO), is_locked, "{said}");
        pair.source.restart().await.unwrap();
        let s = Scenario::again(&pair, NAME).await;
        s.until_state(&mut daemon, "streaming").await;
        s.in_step(&daemon, &["SELECT * FROM t"]).await;
        assert!(daemon.terminate().success());
    }
}
