//! The daemon's part: carries out the comparisons that are asked for in the books.

use super::{Progress, Wanted, verify};
use crate::conn::Session;
use crate::pipeline::{CutAsker, PipelineConfig};
use crate::progress::{ProgressError, Store, VerificationRequest};
use crate::telemetry::{Chain, PipelineState, Telemetry};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_postgres::Client;

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What stands in the way is the pipeline's to tell of.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Looks for requests while the pipeline streams; never ends.
pub async fn serve(
    configure: impl Fn() -> Option<PipelineConfig>,
    cuts: CutAsker,
    telemetry: Telemetry,
) {
    loop {
        if is_streaming(&telemetry)
            && let Some(config) = configure()
            && let Ok(books) = config.replica.connect(Session::ReplicaWrite).await
        {
            // The next attempt has another session.
            let _ = serve_by(&books, &config, &cuts, &telemetry).await;
        }
        sleep(TRY_AGAIN_AFTER).await;
    }
}

/// Another daemon's requests are not ours: this one streams, so it is the pipeline's owner.
fn is_streaming(telemetry: &Telemetry) -> bool {
    matches!(
        telemetry.status().state,
        PipelineState::Streaming | PipelineState::CatchingUp
    )
}

async fn serve_by(
    books: &Client,
    config: &PipelineConfig,
    cuts: &CutAsker,
    telemetry: &Telemetry,
) -> Result<(), ProgressError> {
    Store::fail_left_verifications(books, &config.name).await?;
    while is_streaming(telemetry) {
        match Store::take_verification(books, &config.name).await? {
            Some(request) => carry_out(books, config, (cuts, telemetry), &request).await?,
            None => sleep(LOOK_EVERY).await,
        }
    }
    Ok(())
}

async fn carry_out(
    books: &Client,
    config: &PipelineConfig,
    (cuts, telemetry): (&CutAsker, &Telemetry),
    request: &VerificationRequest,
) -> Result<(), ProgressError> {
    let wanted = Wanted {
        tables: request.tables.clone(),
        counts_only: request.counts_only,
    };
    let (tell, mut told) = watch::channel(String::new());
    let compare = async {
        // Gone with the comparison, so that the listener ends.
        let tell = tell;
        let say = |progress: Progress<'_>| drop(tell.send_replace(progress.to_string()));
        verify(config, cuts, &wanted, say).await
    };
    let listen = async {
        while told.changed().await.is_ok() {
            let progress = told.borrow_and_update().clone();
            Store::tell_verification(books, request.id, &progress).await?;
        }
        Ok::<_, ProgressError>(())
    };
    let (compared, listened) = tokio::join!(compare, listen);
    listened?;
    if let Ok(report) = &compared {
        report.tell(telemetry);
    }
    let compared = compared
        .map(|report| report.to_json())
        .map_err(|error| Chain(&error).to_string());
    let outcome = compared.as_deref().map_err(String::as_str);
    Store::end_verification(books, &config.name, request.id, outcome).await
}
