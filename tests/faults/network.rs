//! Each kind of broken network on each link, in the stream and in the first copy.
//!
//! Time-outs are shortened by the URL, as an operator would do it. `PGLOCKSTEP_SOAK=1` adds a
//! black hole of 90 s with none shortened.

use std::time::Duration;

use pglockstep::demo::cluster::ClusterOptions;
use tokio::sync::OnceCell;

use super::load::{Load, is_fed, prepare, reconnected, reconnects};
use super::probe::ask_for;
use super::proxy::{Line, Proxy, RETRANSMITTED_AFTER};
use crate::support::{Daemon, Family, Pair, PairOptions, Scenario, eventually};
use crate::support::{is_soak, seed};

/// A silent source is given up soon, and lets go of the slot soon.
static FAMILY: Family = OnceCell::const_new();

/// Sooner than the defaults: 10 s, and 60 s of silence.
const IMPATIENT: &str = "connect_timeout=2&tcp_user_timeout=2000";

const LINKS: [&str; 2] = ["source", "replica"];

async fn pair() -> &'static Pair {
    let source = ClusterOptions::default()
        .with("wal_sender_timeout", "8s")
        .with("max_wal_senders", "50")
        .with("max_replication_slots", "50")
        .with("max_connections", "200");
    let replica = ClusterOptions::default().with("max_connections", "200");
    let options = PairOptions { source, replica };
    FAMILY.get_or_init(|| Pair::start_with(options)).await
}

/// A daemon between two proxies.
struct Ground {
    s: Scenario<'static>,
    source: Proxy,
    replica: Proxy,
}

impl Ground {
    async fn new(name: &str, parameters: &str, rows: u32) -> Self {
        let pair = pair().await;
        let mut s = Scenario::on_pair(pair, name).await;
        let seed = seed();
        eprintln!("{name}: PGLOCKSTEP_SEED={seed}");
        let source = Proxy::start(pair.source.port(), seed).await;
        let replica = Proxy::start(pair.replica.port(), seed + 1).await;
        s.source_by(source.url(name, parameters));
        s.replica_by(replica.url(name, parameters));
        prepare(&s, rows).await;
        Self { s, source, replica }
    }

    fn link(&self, link: &str) -> &Proxy {
        if link == "source" {
            &self.source
        } else {
            &self.replica
        }
    }

    /// Whatever else there is to say.
    fn evidence(&self, daemon: &Daemon) -> String {
        format!("{}\n{}", daemon.stderr(), self.s.pair.logs())
    }

    async fn until_not_streaming(&self, daemon: &Daemon) {
        let evidence = || self.evidence(daemon);
        eventually("it to notice", evidence, async || {
            let streams = daemon
                .metric("pglockstep_state{state=\"streaming\"}")
                .await?;
            (streams < 0.5).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn connections_are_reset_in_the_stream() {
    let g = Ground::new("reset", IMPATIENT, 200).await;
    let mut daemon = g.s.start("").await;
    let load = Load::start(&g.s);
    for link in LINKS.repeat(2) {
        is_fed(&g.s, &daemon).await;
        let before = reconnects(&daemon, link).await;
        g.link(link).reset();
        reconnected(&daemon, link, before).await;
        g.s.until_state(&mut daemon, "streaming").await;
    }
    is_fed(&g.s, &daemon).await;
    load.compare(&g.s, &daemon).await;
    let network = "pglockstep_errors_total{category=\"network\",severity=\"medium\"}";
    assert!(daemon.metric(network).await.unwrap() >= 4.0);
}

#[tokio::test]
async fn connections_are_half_open_in_the_stream() {
    lost_one_by_one("half_open", Proxy::half_open).await;
}

/// As by a firewall that has forgotten its connections.
#[tokio::test]
async fn connections_fall_into_a_hole_and_new_ones_pass() {
    lost_one_by_one("forgotten", Proxy::black_hole_of_now).await;
}

/// Nothing comes and nothing ends, and that alone has to be noticed.
async fn lost_one_by_one(name: &str, strike: fn(&Proxy)) {
    let g = Ground::new(name, IMPATIENT, 200).await;
    let mut daemon = g.s.start("").await;
    let load = Load::start(&g.s);
    for link in ["replica", "source"] {
        is_fed(&g.s, &daemon).await;
        let before = reconnects(&daemon, link).await;
        strike(g.link(link));
        reconnected(&daemon, link, before).await;
        // The hole is still there: what is in it must not be needed.
        g.s.until_state(&mut daemon, "streaming").await;
        is_fed(&g.s, &daemon).await;
    }
    load.compare(&g.s, &daemon).await;
    g.source.heal();
    g.replica.heal();
}

#[tokio::test]
async fn black_holes_in_the_stream() {
    let g = Ground::new("hole", IMPATIENT, 200).await;
    let mut daemon = g.s.start("").await;
    let load = Load::start(&g.s);
    for link in ["replica", "source"] {
        is_fed(&g.s, &daemon).await;
        let before = reconnects(&daemon, link).await;
        g.link(link).black_hole();
        g.until_not_streaming(&daemon).await;
        let ready = daemon.http_get("/readyz").await.unwrap();
        assert_eq!(ready.status, 503, "{ready:?}");
        assert_eq!(daemon.http_get("/health").await.unwrap().status, 200);
        // New sessions fall into it as well.
        let refused = g.link(link).accepted();
        eventually(
            "another try",
            || daemon.stderr(),
            async || (g.link(link).accepted() > refused).then_some(()),
        )
        .await;
        g.link(link).heal();
        reconnected(&daemon, link, before).await;
        g.s.until_state(&mut daemon, "streaming").await;
    }
    is_fed(&g.s, &daemon).await;
    load.compare(&g.s, &daemon).await;
}

/// The line does to bytes what it says, by lower bounds: a slow machine adds to each.
async fn assert_felt(proxy: &Proxy, line: Line) {
    let narrow = |bytes: usize| {
        line.bits_per_second.map_or(Duration::ZERO, |bits| {
            Duration::from_secs_f64(8.0 * bytes as f64 / f64::from(bits))
        })
    };
    // What is left to chance comes in the end.
    let what = format!("{line:?} to be felt");
    eventually(&what, String::new, async || {
        let answer = ask_for(30_000, proxy.port()).await;
        let least = 2 * line.latency + narrow(answer.bytes);
        assert!(answer.took >= least, "{line:?}: {answer:?}");
        let has_lost = line.loss_percent == 0 || answer.took >= RETRANSMITTED_AFTER;
        let is_in_bits = !line.byte_by_byte || answer.pieces > 100;
        (has_lost && is_in_bits).then_some(())
    })
    .await;
}

/// Latency is one way: 150 ms make a round trip of 300.
#[tokio::test]
async fn lines_that_are_slow_or_lose_are_no_reason_to_reconnect() {
    let g = Ground::new("slow", IMPATIENT, 200).await;
    let daemon = g.s.start("").await;
    let load = Load::start(&g.s);
    let lines = [
        Line {
            latency: Duration::from_millis(150),
            ..Line::default()
        },
        Line {
            bits_per_second: Some(256_000),
            ..Line::default()
        },
        Line {
            loss_percent: 1,
            ..Line::default()
        },
        Line {
            loss_percent: 20,
            latency: Duration::from_millis(20),
            ..Line::default()
        },
        Line {
            byte_by_byte: true,
            ..Line::default()
        },
    ];
    for line in lines {
        for link in LINKS {
            let before = g.link(link).passed();
            g.link(link).line(line);
            load.writes(30).await;
            is_fed(&g.s, &daemon).await;
            assert!(g.link(link).passed() > before, "{link} {line:?}");
            assert_felt(g.link(link), line).await;
            g.link(link).heal();
        }
    }
    for link in LINKS {
        assert_eq!(
            reconnects(&daemon, link).await,
            0.0,
            "{link}: {}",
            daemon.stderr()
        );
    }
    // Those that the first copy is done with have ended in good order.
    let said = daemon.stderr();
    assert!(!said.contains("session lost"), "{said}");
    load.compare(&g.s, &daemon).await;
}

/// Longer on its way than a silent source is waited for: it is not silent.
#[tokio::test]
async fn a_large_message_on_a_slow_line_arrives() {
    let g = Ground::new("large_message", IMPATIENT, 10).await;
    let daemon = g.s.start("").await;
    g.source.line(Line {
        bits_per_second: Some(256_000),
        ..Line::default()
    });
    let large = "INSERT INTO t (id, v) SELECT 100000, string_agg(md5(g::text), '') FROM generate_series(1, 16000) g";
    g.s.on_source(large).await;
    g.s.in_step(&daemon, &["SELECT * FROM t"]).await;
    let reconnects = reconnects(&daemon, "source").await;
    assert_eq!(reconnects, 0.0, "{}", daemon.stderr());
}

/// Narrow enough for a copy to last.
const NARROW: Line = Line {
    latency: Duration::from_millis(5),
    bits_per_second: Some(4_000_000),
    loss_percent: 1,
    byte_by_byte: false,
};
const COPY_ROWS: u32 = 8_000;

#[tokio::test]
async fn the_first_copy_is_reset() {
    copy_struck("copy_reset", Proxy::reset).await;
}

#[tokio::test]
async fn the_first_copy_is_left_half_open() {
    copy_struck("copy_half", Proxy::half_open).await;
}

#[tokio::test]
async fn the_first_copy_falls_into_a_hole() {
    copy_struck("copy_hole", Proxy::black_hole).await;
}

/// In the middle of a table, on one link and then on the other.
async fn copy_struck(name: &str, strike: fn(&Proxy)) {
    for link in LINKS {
        let g = Ground::new(&format!("{name}_{link}"), IMPATIENT, COPY_ROWS).await;
        g.link(link).line(NARROW);
        let load = Load::start(&g.s);
        let mut daemon = g.s.launch("[copy]\nworkers = 2");
        g.s.until_state(&mut daemon, "copying").await;
        let begun = g.link(link).passed();
        eventually(
            "rows to pass",
            || g.evidence(&daemon),
            async || (g.link(link).passed() > begun + 200_000).then_some(()),
        )
        .await;
        let tries = g.link(link).accepted();
        strike(g.link(link));
        g.until_not_copying(&daemon).await;
        eventually(
            "another try",
            || g.evidence(&daemon),
            async || (g.link(link).accepted() > tries).then_some(()),
        )
        .await;
        g.link(link).heal();
        g.s.until_state(&mut daemon, "streaming").await;
        assert!(
            reconnects(&daemon, link).await >= 1.0,
            "{link}: {}",
            daemon.stderr()
        );
        is_fed(&g.s, &daemon).await;
        load.compare(&g.s, &daemon).await;
    }
}

impl Ground {
    async fn until_not_copying(&self, daemon: &Daemon) {
        let evidence = || self.evidence(daemon);
        eventually("the copy to break off", evidence, async || {
            let copies = daemon.metric("pglockstep_state{state=\"copying\"}").await?;
            (copies < 0.5).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn the_first_copy_over_slow_lines() {
    let lines = [
        Line {
            latency: Duration::from_millis(60),
            ..Line::default()
        },
        Line {
            bits_per_second: Some(256_000),
            ..Line::default()
        },
        Line {
            loss_percent: 20,
            ..Line::default()
        },
        Line {
            byte_by_byte: true,
            ..Line::default()
        },
    ];
    for (number, line) in lines.into_iter().enumerate() {
        let g = Ground::new(&format!("copy_slow_{number}"), IMPATIENT, 400).await;
        g.source.line(line);
        g.replica.line(line);
        let load = Load::start(&g.s);
        let daemon = g.s.start("").await;
        is_fed(&g.s, &daemon).await;
        for link in LINKS {
            assert_eq!(
                reconnects(&daemon, link).await,
                0.0,
                "{line:?}: {}",
                daemon.stderr()
            );
        }
        load.compare(&g.s, &daemon).await;
    }
}

/// A statement that takes longer than all time-outs is waited for: the server is asked, and works.
#[tokio::test]
async fn a_server_that_works_for_long_is_waited_for() {
    let g = Ground::new("works", IMPATIENT, 10).await;
    let daemon = g.s.start("").await;
    let asked = g.replica.accepted();
    g.s.on_replica("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        .await;
    g.s.on_source("INSERT INTO t VALUES (1, 'waits')").await;
    eventually(
        "it to ask twice",
        || g.evidence(&daemon),
        async || (g.replica.accepted() >= asked + 2).then_some(()),
    )
    .await;
    g.s.on_replica("COMMIT").await;
    g.s.in_step(&daemon, &["SELECT * FROM t"]).await;
    assert_eq!(
        reconnects(&daemon, "replica").await,
        0.0,
        "{}",
        daemon.stderr()
    );
}

/// 90 s on each link with every time-out at its default.
#[tokio::test]
async fn black_holes_of_90_seconds() {
    if !is_soak() {
        return;
    }
    let g = Ground::new("soak", "", 200).await;
    let mut daemon = g.s.start("").await;
    let load = Load::start(&g.s);
    for link in LINKS {
        is_fed(&g.s, &daemon).await;
        let before = reconnects(&daemon, link).await;
        g.link(link).black_hole();
        // The length of the hole is what is tested; nothing else is waited for by the clock.
        tokio::time::sleep(Duration::from_secs(90)).await;
        assert_eq!(daemon.http_get("/readyz").await.unwrap().status, 503);
        g.link(link).heal();
        reconnected(&daemon, link, before).await;
        g.s.until_state(&mut daemon, "streaming").await;
    }
    is_fed(&g.s, &daemon).await;
    load.compare(&g.s, &daemon).await;
}
