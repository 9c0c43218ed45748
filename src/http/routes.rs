//! Paths and their answers.

use crate::telemetry::{ErrorStatus, Part, ReadyBounds, Status, TableStatus, Telemetry};
use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use axum::{Json, Router};

const PAGE: &str = include_str!("page.html");
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// The page loads nothing from elsewhere and runs nothing but itself.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; \
     style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'";

#[derive(Clone)]
struct Sources {
    telemetry: Telemetry,
    ready: ReadyBounds,
}

pub(super) fn router(telemetry: Telemetry, ready: ReadyBounds) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/admin/tables", get(tables))
        .route("/admin/errors", get(errors))
        .with_state(Sources { telemetry, ready })
}

/// What `/healthz` and `status --json` answer; field names are an interface.
#[derive(serde::Serialize)]
struct Healthz {
    healthy: bool,
    ready: bool,
    /// Why it is not ready.
    ready_reason: Option<String>,
    parts: Vec<Part>,
    #[serde(flatten)]
    status: Status,
}

async fn page() -> impl IntoResponse {
    (
        [(header::CONTENT_SECURITY_POLICY, PAGE_POLICY), NO_STORE],
        Html(PAGE),
    )
}

async fn metrics(State(sources): State<Sources>) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, METRICS_TYPE), NO_STORE],
        sources.telemetry.render(),
    )
}

async fn health(State(sources): State<Sources>) -> impl IntoResponse {
    let health = sources.telemetry.health();
    (code(health.healthy), [NO_STORE], health.line() + "\n")
}

async fn healthz(State(sources): State<Sources>) -> impl IntoResponse {
    let health = sources.telemetry.health();
    let ready = health.ready(sources.ready);
    let answer = Healthz {
        healthy: health.healthy,
        ready: ready.is_ok(),
        ready_reason: ready.err(),
        parts: health.parts,
        status: sources.telemetry.status(),
    };
    (code(answer.healthy), [NO_STORE], Json(answer))
}

async fn readyz(State(sources): State<Sources>) -> impl IntoResponse {
    match sources.telemetry.health().ready(sources.ready) {
        Ok(()) => (StatusCode::OK, [NO_STORE], "ready\n".to_owned()),
        Err(reason) => (
            StatusCode::SERVICE_UNAVAILABLE,
            [NO_STORE],
            format!("{reason}\n"),
        ),
    }
}

async fn tables(State(sources): State<Sources>) -> Json<Vec<TableStatus>> {
    Json(sources.telemetry.status().tables)
}

async fn errors(State(sources): State<Sources>) -> Json<Vec<ErrorStatus>> {
    Json(sources.telemetry.status().errors)
}

const NO_STORE: (HeaderName, &str) = (header::CACHE_CONTROL, "no-store");

fn code(good: bool) -> StatusCode {
    if good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}
