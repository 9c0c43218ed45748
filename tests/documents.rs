//! What the documents say is so: docs/faults.md names alerts, metrics, words and tests that there are,
//! and every fault of the catalogue; the manifests ask paths that there are.

use std::collections::BTreeSet;
use std::path::Path;

const FAULTS: &str = "docs/faults.md";
const ALERTS: &str = "deploy/prometheus/alerts.yml";
/// How many faults the catalogue has.
const FAULTS_COUNT: u32 = 41;
/// What servers say, not we.
const OF_SERVERS: [&str; 3] = [
    "invalid memory alloc request size",
    "is active for PID",
    "permission denied",
];

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The text of every .rs file below the folder.
fn code_below(folder: &str) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            text += &code_below(path.to_str().unwrap());
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text += &read(&path);
        }
    }
    text
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
}

/// What stands between two such marks.
fn between(text: &str, mark: char) -> impl Iterator<Item = &str> {
    text.split(mark).skip(1).step_by(2)
}

/// What a document is held to.
struct Facts {
    alerts: BTreeSet<String>,
    metrics: BTreeSet<String>,
    /// All of src/.
    code: String,
}

impl Facts {
    fn gather() -> Self {
        let alerts = read(ALERTS);
        let alerts = alerts
            .lines()
            .filter_map(|line| line.trim().strip_prefix("- alert: "));
        let telemetry = code_below("src/telemetry");
        let names = between(&telemetry, '"')
            .filter(|name| name.starts_with("pglockstep_") && words(name).count() == 1);
        let facts = Self {
            alerts: alerts.map(str::to_owned).collect(),
            metrics: names.map(str::to_owned).collect(),
            code: code_below("src"),
        };
        assert!(facts.alerts.len() > 15 && facts.metrics.len() > 25);
        facts
    }

    /// What the page says that is not so, and what it leaves out.
    fn problems(&self, page: &str) -> Vec<String> {
        let mut problems = Vec::new();
        for word in words(page) {
            let is_alert = word.starts_with("Pglockstep");
            if is_alert && !self.alerts.contains(word) {
                problems.push(format!("there is no alert {word}"));
            }
            if word.starts_with("pglockstep_") && !self.metrics.contains(word) {
                problems.push(format!("there is no metric {word}"));
            }
            let whole = format!("pglockstep_{word}");
            if word.contains('_') && self.metrics.contains(&whole) {
                problems.push(format!("{word} is called {whole}"));
            }
        }
        for said in between(page, '"').filter(|said| !OF_SERVERS.contains(said)) {
            // Label values stand in quotes too, and in the code.
            if !self.code.contains(said) {
                problems.push(format!("nobody says {said:?}"));
            }
        }
        let rows = rows(page);
        for number in 1..=FAULTS_COUNT {
            let fault = format!("F{number}");
            if !rows.iter().any(|cells| cells[0] == fault) {
                problems.push(format!("{fault} is left out"));
            }
        }
        for cells in &rows {
            let pointers: Vec<&str> = between(cells[5], '`').collect();
            if pointers.is_empty() && cells[5] != "–" {
                problems.push(format!("no test is named: {}", cells[5]));
            }
            let unknown = pointers.into_iter().filter(|pointer| !is_test(pointer));
            problems.extend(unknown.map(|pointer| format!("there is no test {pointer}")));
        }
        problems
    }
}

/// The rows of its tables that speak of faults.
fn rows(page: &str) -> Vec<Vec<&str>> {
    let lines = page.lines().filter_map(|line| line.strip_prefix("| "));
    let rows = lines.map(|line| line.trim_end_matches(" |").split(" | ").collect());
    let is_fault = |cells: &Vec<&str>| cells.len() == 6 && !["F", "---"].contains(&cells[0]);
    rows.filter(is_fault).collect()
}

/// `module::module::function`, or a line of the catalogue of cases.
fn is_test(pointer: &str) -> bool {
    let mut folder = Path::new("tests").to_owned();
    let mut file = folder.join("main.rs");
    for part in pointer.split("::") {
        let text = read(&file);
        let (below, beside) = (folder.join(part), folder.join(format!("{part}.rs")));
        let is_module = text.contains(&format!("mod {part};"));
        if is_module && below.is_dir() {
            (folder, file) = (below.clone(), below.join("mod.rs"));
        } else if is_module && beside.is_file() {
            file = beside;
        } else {
            let is_case = folder.ends_with("cases")
                && read("tests/cases/catalogue.rs")
                    .contains(&format!("line(\"{}\"", part.to_uppercase()));
            return is_case || text.contains(&format!("fn {part}("));
        }
    }
    true
}

#[test]
fn what_the_page_of_faults_says_is_so() {
    let problems = Facts::gather().problems(&read(FAULTS));
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn every_alert_is_explained() {
    let documents = read(FAULTS) + &read("README.md");
    let named: BTreeSet<&str> = words(&documents).collect();
    let mut alerts = Facts::gather().alerts;
    alerts.retain(|alert| !named.contains(alert.as_str()));
    assert!(alerts.is_empty(), "named nowhere: {alerts:?}");
}

#[test]
fn what_is_not_so_is_noticed() {
    let facts = Facts::gather();
    let page = read(FAULTS);
    for (is, was, problem) in [
        (
            "PglockstepStuck",
            "PglockstepStalled",
            "no alert PglockstepStuck",
        ),
        (
            "pglockstep_open_faults",
            "pglockstep_open_errors",
            "no metric pglockstep_open_faults",
        ),
        (
            "`open_errors",
            "`pglockstep_open_errors",
            "is called pglockstep_open_errors",
        ),
        (
            "beyond what it has",
            "beyond what this replica has",
            "nobody says",
        ),
        ("| F29 |", "| F33 |", "F33 is left out"),
        ("faults::discs", "faults::disks", "no test faults::discs"),
        (
            "slot_that_was_droped",
            "slot_that_was_dropped",
            "no test scenarios::rebase::",
        ),
        ("cases::d40", "cases::d4", "no test cases::d40"),
        ("| nobody |", "| `faults::poolers` |", "no test is named"),
    ] {
        let wrong = page.replace(was, is);
        assert!(wrong != page, "{was}");
        let problems = facts.problems(&wrong);
        assert!(
            problems.iter().any(|found| found.contains(problem)),
            "{is}: {problems:?}"
        );
    }
}

/// What the kubelet asks is answered, and a restart is not the remedy for a server that is away.
#[test]
fn probes_ask_what_is_answered() {
    let (manifest, routes) = (read("deploy/kubernetes.yaml"), read("src/http/routes.rs"));
    let path = |probe: &str| {
        let (_, rest) = manifest.split_once(probe).unwrap();
        let (_, rest) = rest.split_once("path: ").unwrap();
        rest.split(',').next().unwrap().to_owned()
    };
    let (liveness, readiness) = (path("livenessProbe: "), path("readinessProbe: "));
    for path in [&liveness, &readiness] {
        assert!(routes.contains(&format!(".route(\"{path}\"")), "{path}");
    }
    assert_eq!(
        (liveness.as_str(), readiness.as_str()),
        ("/metrics", "/health")
    );
}

/// `src/lib.rs` refuses the feature `faults` where assertions are off: so they are, in a release.
#[test]
fn a_release_has_no_debug_assertions() {
    assert!(!read("Cargo.toml").contains("debug-assertions"));
    let refusal = "#[cfg(all(feature = \"faults\", not(debug_assertions)))]\ncompile_error!(";
    assert!(read("src/lib.rs").contains(refusal));
}
