//! What servers of every major sent, whole streams of it: the corpus that is damaged.

use bytes::Bytes;
use std::path::PathBuf;

/// One stream of `tests/golden`, as bytes.
pub(crate) struct Capture {
    /// Its file.
    pub(crate) name: String,
    pub(crate) protocol_version: u8,
    /// As it was asked for: `off`, `on` or `parallel`.
    pub(crate) streaming: String,
    pub(crate) messages: Vec<Bytes>,
}

impl Capture {
    fn read(path: &PathBuf) -> Self {
        let text = std::fs::read_to_string(path).unwrap();
        let (head, lines) = text.split_once('\n').unwrap();
        let after = |word: &str| {
            let (_, rest) = head.split_once(word).unwrap();
            rest.split(',').next().unwrap().to_owned()
        };
        Self {
            name: path.file_stem().unwrap().to_str().unwrap().to_owned(),
            protocol_version: after("protocol ").parse().unwrap(),
            streaming: after(", streaming "),
            messages: lines.lines().map(unhex).collect(),
        }
    }
}

/// All streams of all majors.
pub(crate) fn captures() -> Vec<Capture> {
    let files = std::fs::read_dir("tests/golden").unwrap();
    let mut paths: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "hex"));
    paths.sort();
    assert_eq!(paths.len(), 22, "five majors, up to five streams each");
    paths.iter().map(Capture::read).collect()
}

fn unhex(text: &str) -> Bytes {
    let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(byte).collect()
}
