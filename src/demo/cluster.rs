//! A throw-away PostgreSQL cluster: made in a temporary folder, gone with its owner.
//!
//! ```text
//!  FOLDER/data        the cluster; every start reads postgresql.conf there
//!  FOLDER/log         what the server says
//!  FOLDER/.s.PGSQL.N  its unix socket; the same port serves 127.0.0.1
//! ```
//!
//! Three things end a cluster: `Drop` (a panic too); the end of our process, however
//! it came about (the [`Guard`] sees its pipe close); and [`Cluster::stop`], after which
//! [`Cluster::restart`] brings it back. Ctrl-C on a terminal reaches only us: server and
//! guard live in process groups of their own.
//!
//! Each cluster is made by `initdb`, which takes 0.7 s. A copied one would take less but
//! carry the same system identifier, by which a replica that is its own source is known.
//!
//! Everybody on this machine may connect as superuser: for demonstrations and tests only.

mod error;
mod guard;
mod install;
mod postmaster;

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use error::ClusterError;
pub use install::{Installation, installed_majors};
pub use postmaster::StopMode;

use crate::pg::{quote_ident, quote_literal};
use guard::Guard;
use install::ServerUser;
use postmaster::Postmaster;

/// A start includes crash recovery, on a machine that is busy with other tests.
const START_SECONDS_MAX: u64 = 60;

/// What a cluster is to be.
#[derive(Clone, Debug, Default)]
pub struct ClusterOptions {
    /// The major version; `None` takes the first installation found.
    pub version: Option<u32>,
    /// Settings over the defaults, as in postgresql.conf; values are quoted here.
    pub settings: Vec<(String, String)>,
    /// Lines of `pg_hba.conf` that come before "trust everybody".
    pub hba: Vec<String>,
    /// Make commits survive a crash of the machine; off, they survive that of the server.
    pub fsync: bool,
}

impl ClusterOptions {
    /// The default cluster of one major version.
    #[must_use]
    pub fn version(major: u32) -> Self {
        Self {
            version: Some(major),
            ..Self::default()
        }
    }

    /// The same with one more setting.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A running cluster, or a stopped one that can be started again.
#[derive(Debug)]
pub struct Cluster {
    // In this order: server first, then what would clean up after us, then the folder.
    postmaster: Option<Postmaster>,
    guard: Guard,
    folder: tempfile::TempDir,
    path: PathBuf,
    port: u16,
    user: ServerUser,
    installation: Installation,
}

impl Cluster {
    /// Makes and starts a cluster; it answers queries when this returns.
    ///
    /// # Errors
    /// [`ClusterError`], with the end of the server's log where there is one.
    pub async fn start(options: ClusterOptions) -> Result<Self, ClusterError> {
        let installation = install::find(options.version)?;
        let user = ServerUser::find()?;
        let folder = new_folder()?;
        // What the server reports of itself has links resolved.
        let path = folder.path().canonicalize().map_err(ClusterError::Folder)?;
        user.own(&path).map_err(ClusterError::Folder)?;
        let guard = Guard::watch(&path)?;
        let mut cluster = Self {
            postmaster: None,
            guard,
            folder,
            path,
            port: 0,
            user,
            installation,
        };
        cluster.initdb().await?;
        cluster.write_configuration(&options)?;
        cluster.restart().await?;
        Ok(cluster)
    }

    /// Starts a stopped, killed or crashed cluster; one that runs is stopped first.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub async fn restart(&mut self) -> Result<(), ClusterError> {
        self.stop(StopMode::Fast).await?;
        let deadline = Instant::now() + Duration::from_secs(START_SECONDS_MAX);
        loop {
            if self.port == 0 {
                self.port = postmaster::free_port().map_err(ClusterError::Folder)?;
            }
            let log_start = self.log().len();
            self.postmaster = Some(Postmaster::spawn(
                &self.installation,
                &self.user,
                &self.path,
                self.port,
            )?);
            match self.wait_until_ready(deadline).await {
                // Another process was quicker to take the port, or the last server's
                // children still hold its memory.
                Err(ClusterError::Exited { .. }) if Instant::now() < deadline => {
                    let log = self.log();
                    let said = log.get(log_start..).unwrap_or_default();
                    if said.contains("Address already in use") && !self.was_ready() {
                        self.port = 0;
                    } else if !said.contains("still in use") && !said.contains("already in use") {
                        return Err(self.exited());
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// Stops the server and waits for its end. Nothing happens when it is down.
    ///
    /// # Errors
    /// When it does not end within its time; it is killed then.
    pub async fn stop(&mut self, mode: StopMode) -> Result<(), ClusterError> {
        match self.postmaster.take() {
            Some(mut postmaster) => postmaster.stop(mode).await,
            None => Ok(()),
        }
    }

    /// Kills the server with all its processes, as the kernel does when memory runs out.
    pub fn kill9(&mut self) {
        if let Some(mut postmaster) = self.postmaster.take() {
            postmaster.kill_all();
        }
    }

    /// A connection string for the superuser by the unix socket.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        let folder = self.path.display();
        format!(
            "postgresql://postgres@/{}?host={folder}&port={}",
            escaped(database),
            self.port
        )
    }

    /// A connection string for the superuser by TCP.
    #[must_use]
    pub fn tcp_url(&self, database: &str) -> String {
        format!(
            "postgresql://postgres@127.0.0.1:{}/{}",
            self.port,
            escaped(database)
        )
    }

    /// The port of TCP and of the unix socket; the same after every restart.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of the unix socket.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        &self.path
    }

    /// The folder of the cluster's files.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.path.join("data")
    }

    /// Where its programs come from, and their major version.
    #[must_use]
    pub fn installation(&self) -> &Installation {
        &self.installation
    }

    /// The postmaster's process id; `None` when it is down.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.postmaster.as_ref().map(Postmaster::id)
    }

    /// All that the server has logged.
    #[must_use]
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.path.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The last lines of the log.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<_> = log.lines().collect();
        all.get(all.len().saturating_sub(lines)..)
            .unwrap_or_default()
            .join("\n")
    }

    /// Connects as superuser.
    ///
    /// # Errors
    /// When the server is down or the database does not exist.
    pub async fn connect(&self, database: &str) -> Result<tokio_postgres::Client, ClusterError> {
        let failed = |source| ClusterError::Sql {
            database: database.to_owned(),
            source,
        };
        let (client, connection) = tokio_postgres::Config::new()
            .host_path(&self.path)
            .port(self.port)
            .user("postgres")
            .dbname(database)
            .connect(tokio_postgres::NoTls)
            .await
            .map_err(failed)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to a throw-away cluster ended");
            }
        });
        Ok(client)
    }

    /// Runs statements, separated by semicolons, as superuser on a connection of their own.
    ///
    /// # Errors
    /// When one fails; those before it in the same string are rolled back.
    pub async fn execute(&self, database: &str, sql: &str) -> Result<(), ClusterError> {
        let client = self.connect(database).await?;
        let failed = |source| ClusterError::Sql {
            database: database.to_owned(),
            source,
        };
        client.batch_execute(sql).await.map_err(failed)
    }

    /// Makes an empty database.
    ///
    /// # Errors
    /// When it exists, or the server is down.
    pub async fn create_database(&self, name: &str) -> Result<(), ClusterError> {
        self.execute(
            "postgres",
            &format!("CREATE DATABASE {}", quote_ident(name)),
        )
        .await
    }

    /// Changes a setting for good and reloads; some need a [`restart`](Self::restart) too.
    ///
    /// # Errors
    /// When the server is down or refuses the value.
    pub async fn alter_system(&self, name: &str, value: &str) -> Result<(), ClusterError> {
        let client = self.connect("postgres").await?;
        let failed = |source| ClusterError::Sql {
            database: "postgres".to_owned(),
            source,
        };
        // ALTER SYSTEM refuses to share a transaction, even the implicit one of a batch.
        let alter = format!(
            "ALTER SYSTEM SET {} = {}",
            quote_ident(name),
            quote_literal(value)
        );
        client.batch_execute(&alter).await.map_err(failed)?;
        client
            .batch_execute("SELECT pg_reload_conf()")
            .await
            .map_err(failed)
    }

    /// Writes a file into the data folder that only the server can read: a key, a certificate.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_file(&self, name: &str, content: &[u8]) -> Result<PathBuf, ClusterError> {
        let path = self.data_dir().join(name);
        let write = || {
            let mut file = std::fs::OpenOptions::new()
                .create(true)
                .write(true)
                .truncate(true)
                .mode(0o600)
                .open(&path)?;
            file.write_all(content)?;
            self.user.own(&path)
        };
        write().map_err(ClusterError::Folder)?;
        Ok(path)
    }

    /// Puts lines before "trust everybody" in `pg_hba.conf`; they hold after the next
    /// reload or restart.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_hba(&self, lines: &[String]) -> Result<(), ClusterError> {
        let mut content = String::new();
        for line in lines {
            content.push_str(line);
            content.push('\n');
        }
        for kind in ["local", "host"] {
            let address = if kind == "host" { "127.0.0.1/32" } else { "" };
            for database in ["all", "replication"] {
                let _ = writeln!(content, "{kind} {database} all {address} trust");
            }
        }
        self.write_file("pg_hba.conf", content.as_bytes())
            .map(|_| ())
    }

    async fn initdb(&self) -> Result<(), ClusterError> {
        let program = self.installation.program("initdb");
        let mut command = std::process::Command::new(&program);
        self.user.run_as(&mut command);
        command
            .args(["--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C"])
            .args(["--username=postgres", "--pgdata=data"])
            .current_dir(&self.path);
        let output = tokio::process::Command::from(command)
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|source| ClusterError::Spawn {
                program: program.clone(),
                source,
            })?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(ClusterError::Initdb { program, said })
    }

    fn write_configuration(&self, options: &ClusterOptions) -> Result<(), ClusterError> {
        let defaults = [
            ("listen_addresses", "127.0.0.1"),
            ("wal_level", "logical"),
            ("max_wal_senders", "20"),
            ("max_replication_slots", "20"),
            ("max_prepared_transactions", "20"),
            // Files of its own, so that nothing is left in /dev/shm by a kill.
            ("dynamic_shared_memory_type", "mmap"),
            ("log_line_prefix", "%m [%p] %q%u@%d %a: "),
            ("fsync", if options.fsync { "on" } else { "off" }),
        ];
        let mut text = String::new();
        let given = options
            .settings
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        // The last line of a setting wins.
        for (name, value) in defaults.into_iter().chain(given) {
            let _ = writeln!(text, "{name} = '{}'", value.replace('\'', "''"));
        }
        self.write_file("postgresql.conf", text.as_bytes())?;
        self.write_hba(&options.hba)
    }

    /// Whether this cluster has answered on its port before: clients know the port then.
    fn was_ready(&self) -> bool {
        self.log().contains("database system is ready")
    }

    fn exited(&self) -> ClusterError {
        ClusterError::Exited {
            log: self.log_tail(20),
        }
    }

    async fn wait_until_ready(&mut self, deadline: Instant) -> Result<(), ClusterError> {
        loop {
            if self.postmaster.as_mut().is_none_or(Postmaster::has_ended) {
                self.postmaster = None;
                return Err(self.exited());
            }
            match self.execute("postgres", "SELECT 1").await {
                Ok(()) => return Ok(()),
                Err(_) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(_) => {
                    let log = self.log_tail(20);
                    return Err(ClusterError::NotReady {
                        seconds: START_SECONDS_MAX,
                        log,
                    });
                }
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut postmaster) = self.postmaster.take() {
            postmaster.stop_now();
        }
        // The folder is removed by its own Drop; the guard finds nothing left to do.
        if let Err(error) = std::fs::remove_dir_all(self.folder.path()) {
            tracing::debug!(%error, "a throw-away cluster's folder could not be removed at once");
        }
        self.guard.dismiss();
    }
}

/// A folder short enough for a unix socket, which only its owner can enter.
fn new_folder() -> Result<tempfile::TempDir, ClusterError> {
    // sockaddr_un holds 107 bytes; "/.s.PGSQL.65535" and our name take 15 + 13 of them.
    const SOCKET_FOLDER_BYTES_MAX: usize = 107 - 28;
    let system = std::env::temp_dir();
    let parent = if system.as_os_str().len() > SOCKET_FOLDER_BYTES_MAX {
        PathBuf::from("/tmp")
    } else {
        system
    };
    let folder = tempfile::Builder::new()
        .prefix("pglk-")
        .tempdir_in(parent)
        .map_err(ClusterError::Folder)?;
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700))
        .map_err(ClusterError::Folder)?;
    Ok(folder)
}

/// A database's name as a part of a URL.
fn escaped(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_in_urls() {
        assert_eq!(super::escaped("app_1"), "app_1");
        assert_eq!(super::escaped("a b/ä?"), "a%20b%2F%C3%A4%3F");
    }
}
