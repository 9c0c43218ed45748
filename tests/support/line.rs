//! The line of a host that may die: from then on nothing answers for it, not even its kernel, and
//! whoever was connected to it is not told.

use std::sync::{Arc, Mutex};

use socket2::{SockFilter, SockRef, Socket};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// BPF's `RET 0`: nothing of the packet is taken, and so it is not acknowledged either.
const TAKE_NOTHING: SockFilter = SockFilter::new(0x06, 0, 0, 0);

/// Connections of one host to one server, for as long as it lives.
pub struct Line {
    port: u16,
    to_server: Arc<Mutex<Vec<Socket>>>,
    carrying: JoinHandle<()>,
}

impl Line {
    pub async fn start(server_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let to_server = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&to_server);
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
                connections.spawn(async move {
                    // Either end may go away.
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        Self {
            port,
            to_server,
            carrying,
        }
    }

    /// The server's TCP address by this line.
    pub fn url(&self, database: &str) -> String {
        let port = self.port;
        format!("postgresql://postgres@127.0.0.1:{port}/{database}")
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

impl Drop for Line {
    fn drop(&mut self) {
        self.carrying.abort();
    }
}
