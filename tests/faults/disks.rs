//! Disks that are full, on either server: nothing is lost, and it goes on when there is room.
//!
//! The disks are small ones in memory, which only root can mount: for anybody else these tests
//! do nothing, and say so.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use pglockstep::demo::cluster::{Cluster, ClusterOptions, StopMode};

use super::load::{is_fed, prepare, under_load};
use super::{assert_not_failed, errors, says};
use crate::support::{Pair, PairOptions, Scenario};

/// A small disk on a folder. Dropped, it is gone.
struct Disk(PathBuf);

impl Disk {
    /// In the place of a folder, whose files move onto it. `None` for who may not mount.
    fn over(folder: &Path, megabytes: u32) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            let test = std::thread::current();
            let test = test.name().unwrap_or_default();
            // Past the harness, which swallows what a test that passes prints.
            let mut stderr = std::io::stderr();
            let _ = writeln!(
                stderr,
                "NOT TESTED: {test}: only root can mount a disk to fill"
            );
            return None;
        }
        let aside = folder.with_extension("aside");
        run("cp", &["-a", text(folder), text(&aside)]);
        let size = format!("size={megabytes}m");
        run(
            "mount",
            &["-t", "tmpfs", "-o", &size, "tmpfs", text(folder)],
        );
        let disk = Self(folder.to_owned());
        run("cp", &["-a", &format!("{}/.", text(&aside)), text(folder)]);
        std::fs::remove_dir_all(aside).unwrap();
        Some(disk)
    }

    /// Not a byte is left.
    fn fill(&self) {
        let mut ballast = std::fs::File::create(self.ballast()).unwrap();
        for piece in [64 * 1024, 1] {
            while ballast.write_all(&vec![0; piece]).is_ok() {}
        }
    }

    fn make_room(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: the server may still have files open there.
        let _ = Command::new("umount").args(["-l", text(&self.0)]).status();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}

const MANY: &str = "INSERT INTO t SELECT g, 'many', repeat(md5(g::text), 8) FROM generate_series(100001, 104000) g";

#[tokio::test]
async fn a_replica_without_room_for_its_tables() {
    let pair = Pair::start().await;
    let folder = pair.replica.socket_dir().join("tables");
    std::fs::create_dir(&folder).unwrap();
    run(
        "chown",
        &["--reference", text(&pair.replica.data_dir()), text(&folder)],
    );
    let Some(disk) = Disk::over(&folder, 16) else {
        return;
    };
    let s = Scenario::on_pair(&pair, "tables").await;
    prepare(&s, 100).await;
    s.replica
        .batch_execute(&format!(
            "CREATE TABLESPACE small LOCATION '{}'",
            folder.display()
        ))
        .await
        .unwrap();
    s.on_replica("ALTER TABLE t SET TABLESPACE small").await;
    let (mut daemon, load) = under_load(&s).await;
    disk.fill();
    s.on_source(MANY).await;
    says(&daemon, "53100").await;
    assert!(errors(&daemon, "database").await >= 1.0);
    assert_not_failed(&daemon).await;
    disk.make_room();
    s.until_state(&mut daemon, "streaming").await;
    is_fed(&s, &daemon).await;
    load.compare(&s, &daemon).await;
}

/// A server whose log finds no room panics.
#[tokio::test]
async fn a_server_without_room_for_its_log() {
    let mut pair = Pair::start().await;
    let s = Scenario::on_pair(&pair, "logs").await;
    prepare(&s, 100).await;
    let (mut daemon, load) = under_load(&s).await;
    drop(s);
    for side in ["replica", "source"] {
        let cluster = cluster(&mut pair, side);
        cluster.stop(StopMode::Fast).await.unwrap();
        let Some(disk) = Disk::over(&cluster.data_dir().join("pg_wal"), 80) else {
            return;
        };
        cluster.restart().await.unwrap();
        let s = Scenario::again(&pair, "logs").await;
        s.until_state(&mut daemon, "streaming").await;
        is_fed(&s, &daemon).await;
        disk.fill();
        // More than one segment of the log.
        let _ = s
            .source
            .batch_execute(&MANY.replace("104000", "160000"))
            .await;
        says(&daemon, &format!("cannot connect to the {side}")).await;
        drop(s);
        disk.make_room();
        let cluster = self::cluster(&mut pair, side);
        cluster.kill9();
        cluster.restart().await.unwrap();
        let s = Scenario::again(&pair, "logs").await;
        s.until_state(&mut daemon, "streaming").await;
        is_fed(&s, &daemon).await;
        s.on_source("DELETE FROM t WHERE id > 100000").await;
        s.caught_up(&daemon).await;
        drop(s);
        // The log goes back to a disk with room.
        let cluster = self::cluster(&mut pair, side);
        cluster.stop(StopMode::Fast).await.unwrap();
        let folder = cluster.data_dir().join("pg_wal");
        let aside = folder.with_extension("aside");
        run("cp", &["-a", text(&folder), text(&aside)]);
        drop(disk);
        std::fs::remove_dir_all(&folder).unwrap();
        std::fs::rename(aside, folder).unwrap();
        cluster.restart().await.unwrap();
    }
    let s = Scenario::again(&pair, "logs").await;
    s.until_state(&mut daemon, "streaming").await;
    is_fed(&s, &daemon).await;
    load.compare(&s, &daemon).await;
}

fn cluster<'p>(pair: &'p mut Pair, side: &str) -> &'p mut Cluster {
    match side {
        "source" => &mut pair.source,
        _ => &mut pair.replica,
    }
}

/// A walsender puts a large transaction aside on disk while it reads it.
#[tokio::test]
async fn a_source_without_room_for_what_it_puts_aside() {
    let source = ClusterOptions::default().with("logical_decoding_work_mem", "64kB");
    let pair = Pair::start_with(PairOptions {
        source,
        ..PairOptions::default()
    })
    .await;
    let Some(disk) = Disk::over(&pair.source.data_dir().join("pg_replslot"), 16) else {
        return;
    };
    let s = Scenario::on_pair(&pair, "aside").await;
    prepare(&s, 100).await;
    let (mut daemon, load) = under_load(&s).await;
    disk.fill();
    s.on_source(MANY).await;
    says(&daemon, "No space left on device").await;
    assert_not_failed(&daemon).await;
    disk.make_room();
    s.until_state(&mut daemon, "streaming").await;
    is_fed(&s, &daemon).await;
    load.compare(&s, &daemon).await;
}
