//! Sessions and streams against real servers: every way to log in, every way to stream.

pub mod authority;
mod fuzz;
mod hostile;
mod login;
mod refusals;
mod sessions;
mod stream;
mod tls;

use pglockstep::conn::{ConnError, ConnectionUrl, Endpoint, Session};
use pglockstep::pg::Side;
use pglockstep::replication::{ReplicationConnection, ReplicationError};

/// The source side of a connection string.
fn source(url: &str) -> Endpoint {
    let url = ConnectionUrl::parse(&url.to_owned().into()).unwrap();
    Endpoint::new(Side::Source, url, "wire_test")
}

const IS_ENCRYPTED: &str =
    "SELECT ssl::text FROM pg_catalog.pg_stat_ssl WHERE pid = pg_catalog.pg_backend_pid()";

/// Opens both kinds of session: they must agree. Whether TLS protects them, or the two errors.
async fn encryption(url: &str) -> Result<bool, (ConnError, ConnError)> {
    let endpoint = source(url);
    let sql = endpoint.connect(Session::SourceRead).await;
    let replication = ReplicationConnection::connect(&endpoint).await;
    match (sql, replication) {
        (Ok(sql), Ok(mut replication)) => {
            let row = sql.query_one(IS_ENCRYPTED, &[]).await.unwrap();
            let rows = replication.simple_query(IS_ENCRYPTED).await.unwrap();
            assert_eq!(rows, [[Some(row.get::<_, String>(0))]], "{url}");
            replication.close().await;
            Ok(rows[0][0].as_deref() == Some("true"))
        }
        (Err(sql), Err(ReplicationError::Connect(replication))) => Err((sql, replication)),
        (sql, replication) => panic!("{url}: {:?} but {replication:?}", sql.map(|_| "connected")),
    }
}

/// Neither session opens; both errors say this, advise that, and hide the password.
async fn assert_refused(url: &str, says: &str, advises: &str) {
    let outcome = encryption(url).await;
    let Err((sql, replication)) = outcome else {
        panic!("{url} connects: {outcome:?}")
    };
    for error in [sql, replication] {
        let (text, advice) = (error.to_string(), error.advice());
        assert!(text.contains(says), "{url}: {text}");
        assert!(advice.contains(advises), "{url}: {text}: {advice}");
        assert!(
            !text.contains("s3cret") && !advice.contains("s3cret"),
            "{url}: {text}: {advice}"
        );
    }
}
