//! The line of a host that may die: from then on nothing answers for it, not even its kernel, and
//! whoever was connected to it is not told.

use std::sync::{Arc, Mutex};

use socket2::{SockFilter, SockRef, Socket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// BPF's `RET 0`: nothing of the packet is taken, and so it is not acknowledged either.
const TAKE_NOTHING: SockFilter = SockFilter::new(0x06, 0, 0, 0);

/// Connections of one host to one server, for as long as it lives.
pub struct Line {
    port: u16,
    to_server: Arc<Mutex<Vec<Socket>>>,
    said: Arc<Mutex<Vec<u8>>>,
    spoils: Spoils,
    carrying: JoinHandle<()>,
}

/// What comes next in these words arrives in those, of the same length.
type Spoils = Arc<Mutex<Option<[&'static str; 2]>>>;

impl Line {
    pub async fn start(server_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let to_server = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&to_server);
        let said = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&said);
        let spoils = Spoils::default();
        let spoiling = Arc::clone(&spoils);
        let carrying = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let Ok(mut server) = TcpStream::connect(("127.0.0.1", server_port)).await else {
                    continue;
                };
                for socket in [&client, &server] {
                    socket.set_nodelay(true).unwrap();
                }
                kept.lock()
                    .unwrap()
                    .push(SockRef::from(&server).try_clone().unwrap());
                let (heard, spoiling) = (Arc::clone(&heard), Arc::clone(&spoiling));
                connections.spawn(async move {
                    let (mut asking, mut answered) = client.split();
                    let (mut answering, mut asked) = server.split();
                    // Either end may go away.
                    tokio::select! {
                        _ = carry(&mut asking, &mut asked, &heard, &spoiling) => {}
                        _ = tokio::io::copy(&mut answering, &mut answered) => {}
                    }
                    // What we keep of it would hold it open.
                    let _ = server.shutdown().await;
                });
            }
        });
        Self {
            port,
            to_server,
            said,
            spoils,
            carrying,
        }
    }

    /// The server's TCP address by this line.
    pub fn url(&self, database: &str) -> String {
        let port = self.port;
        format!("postgresql://postgres@127.0.0.1:{port}/{database}")
    }

    /// Whether this was said to the server, by whomever, whether or not it has read it.
    pub fn has_carried(&self, words: &str) -> bool {
        self.times_carried(words) > 0
    }

    /// How often it was.
    pub fn times_carried(&self, words: &str) -> usize {
        let said = self.said.lock().unwrap();
        let all = said.windows(words.len());
        all.filter(|some| *some == words.as_bytes()).count()
    }

    /// The next time that the one is said to the server, it hears the other.
    pub fn spoil(&self, words: [&'static str; 2]) {
        assert_eq!(words[0].len(), words[1].len());
        *self.spoils.lock().unwrap() = Some(words);
    }

    /// Whether that has been.
    pub fn has_spoiled(&self) -> bool {
        self.spoils.lock().unwrap().is_none()
    }

    /// As when the host loses its power. Its own end is closed, should it still run.
    pub async fn die(&mut self) {
        for socket in self.to_server.lock().unwrap().iter() {
            socket.attach_filter(&[TAKE_NOTHING]).unwrap();
        }
        // Ends what is carried before anybody can say good-bye; what we keep stays open.
        self.carrying.abort();
        let _ = (&mut self.carrying).await;
    }
}

/// Until the client's end of it closes.
async fn carry(
    from: &mut ReadHalf<'_>,
    to: &mut WriteHalf<'_>,
    said: &Mutex<Vec<u8>>,
    spoils: &Mutex<Option<[&str; 2]>>,
) -> std::io::Result<()> {
    let mut bytes = [0; 8192];
    loop {
        let count = from.read(&mut bytes).await?;
        if count == 0 {
            return Ok(());
        }
        said.lock().unwrap().extend_from_slice(&bytes[..count]);
        spoils.lock().unwrap().take_if(|[words, others]| {
            let mut all = bytes[..count].windows(words.len());
            let at = all.position(|some| some == words.as_bytes());
            if let Some(at) = at {
                bytes[at..at + others.len()].copy_from_slice(others.as_bytes());
            }
            at.is_some()
        });
        to.write_all(&bytes[..count]).await?;
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.carrying.abort();
    }
}
