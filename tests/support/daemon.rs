//! The built program as an operator runs it: a file, a process, its stderr, its endpoints.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{WAIT_SECONDS_MAX, eventually};

/// A port that was free a moment ago, and that the kernel gives to nobody who does not ask for
/// it: below those of outgoing connections (`ip_local_port_range`).
pub fn free_port() -> u16 {
    const FIRST: u32 = 12_000;
    const COUNT: u32 = 20_000;
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    // Another process begins elsewhere.
    let begin = std::process::id().wrapping_mul(131);
    loop {
        let next = begin.wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(FIRST + next % COUNT).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// An HTTP answer.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub body: String,
}

/// A running `pglockstep run`. Dropped, it is killed.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    /// Kills the daemon should this process end without a Drop.
    guard: Child,
    stderr: Arc<Mutex<String>>,
    reading: Option<std::thread::JoinHandle<()>>,
    config: tempfile::TempPath,
    listen: Option<String>,
}

impl Daemon {
    /// Starts the daemon with this configuration file; does not wait for anything.
    pub fn start(config: &str) -> Self {
        Self::start_with(config, &[])
    }

    /// As `start`, with more in its environment.
    pub fn start_with(config: &str, environment: &[(&str, &str)]) -> Self {
        let path = write_config(config);
        let mut child = pglockstep(&path)
            .arg("run")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let guard = Command::new("/bin/sh")
            .args([
                "-c",
                "cat >/dev/null; kill -KILL \"$1\"",
                "guard",
                &child.id().to_string(),
            ])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stderr = Arc::new(Mutex::new(String::new()));
        let (pipe, collected) = (child.stderr.take().unwrap(), Arc::clone(&stderr));
        let reading = std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                let mut text = collected.lock().unwrap();
                text.push_str(&line);
                text.push('\n');
            }
        });
        Self {
            child,
            guard,
            stderr,
            reading: Some(reading),
            config: path,
            listen: listen_address(config),
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn config_path(&self) -> &Path {
        &self.config
    }

    /// All that it has written to stderr.
    pub fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    /// `None` while it runs.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().unwrap()?;
        // What it said last is read to its end.
        if let Some(reading) = self.reading.take() {
            reading.join().unwrap();
        }
        Some(status)
    }

    /// Kills it, as the kernel does; returns when it is gone.
    pub fn kill9(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }

    /// SIGTERM, then waits for the end.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    pub fn signal(&mut self, signal: Signal) {
        if self.exit_status().is_none() {
            let id = i32::try_from(self.child.id()).unwrap();
            kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
        }
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(WAIT_SECONDS_MAX);
        loop {
            if let Some(status) = self.exit_status() {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "the daemon does not end\n{}",
                self.stderr()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The most memory it has ever held, in bytes.
    pub fn rss_bytes_max(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// GET on the address in `[http] listen`; `None` when nobody answers there.
    pub async fn http_get(&self, path: &str) -> Option<Response> {
        self.http("GET", path).await
    }

    pub async fn http(&self, method: &str, path: &str) -> Option<Response> {
        let address = self
            .listen
            .as_deref()
            .expect("the configuration has no [http] listen");
        http_request(address, method, path).await
    }

    /// Waits until it has said these words.
    pub async fn until_said(&self, words: &str) {
        let evidence = || self.stderr();
        eventually(&format!("it to say {words:?}"), evidence, async || {
            self.stderr().contains(words).then_some(())
        })
        .await;
    }

    /// Waits until it says that it is ready, and returns the answer.
    pub async fn until_ready(&self) -> Response {
        let evidence = || self.stderr();
        eventually("readiness", evidence, async || {
            let ready = self.http_get("/readyz").await?;
            (ready.status == 200).then_some(ready)
        })
        .await
    }

    /// The value of a metric's sample, written as in `/metrics`: `name` or `name{label="x"}`.
    pub async fn metric(&self, sample: &str) -> Option<f64> {
        let body = self.http_get("/metrics").await?.body;
        body.lines().find_map(|line| {
            line.strip_prefix(sample)?
                .strip_prefix(' ')?
                .trim()
                .parse()
                .ok()
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // The guard first: it must not signal a number that is no longer the daemon's.
        let _ = self.guard.kill();
        let _ = self.guard.wait();
        self.kill9();
        if std::thread::panicking() {
            eprintln!("--- daemon stderr ---\n{}", self.stderr());
        }
    }
}

async fn http_request(address: &str, method: &str, path: &str) -> Option<Response> {
    let mut socket = tokio::net::TcpStream::connect(address).await.ok()?;
    // HTTP/1.0: the body ends with the connection, and is never chunked.
    let request = format!("{method} {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    socket.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.ok()?;
    let answer = String::from_utf8(answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Response {
        status,
        body: body.to_owned(),
    })
}

/// The configuration of a daemon that runs beside the one with this: its own address alone differs.
pub fn beside(config: &str) -> String {
    let listen = listen_address(config).expect("the configuration has no [http] listen");
    config.replace(&listen, &format!("127.0.0.1:{}", free_port()))
}

/// Runs another verb with this configuration to its end.
pub fn run_verb(config: &str, arguments: &[&str]) -> Output {
    let path = write_config(config);
    pglockstep(&path)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn pglockstep(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pglockstep"));
    command.arg("--config").arg(config);
    // What the developer's shell says must not decide a test.
    for (name, _) in std::env::vars() {
        if name.starts_with("PGLOCKSTEP_") || name.starts_with("PG") {
            command.env_remove(name);
        }
    }
    command
}

fn write_config(config: &str) -> tempfile::TempPath {
    let mut file = tempfile::Builder::new()
        .prefix("pglockstep-")
        .suffix(".toml")
        .tempfile()
        .unwrap();
    file.write_all(config.as_bytes()).unwrap();
    file.into_temp_path()
}

fn listen_address(config: &str) -> Option<String> {
    let line = config
        .lines()
        .find_map(|line| line.trim().strip_prefix("listen"))?;
    line.split('"').nth(1).map(str::to_owned)
}

#[test]
fn the_address_is_the_configuration_s() {
    let config = "[http]\nlisten = \"127.0.0.1:99\"\n";
    assert_eq!(listen_address(config).as_deref(), Some("127.0.0.1:99"));
}

#[tokio::test]
async fn answers_of_a_real_server_are_understood() {
    let router = axum::Router::new().route("/there", axum::routing::get(|| async { "a 1\nb 2" }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, router).await });
    let there = http_request(&address, "GET", "/there").await.unwrap();
    assert_eq!((there.status, there.body.as_str()), (200, "a 1\nb 2"));
    assert_eq!(
        http_request(&address, "GET", "/gone").await.unwrap().status,
        404
    );
    assert!(http_request("127.0.0.1:1", "GET", "/").await.is_none());
}
