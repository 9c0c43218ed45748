//! The rooms of `src/lib.rs` look up its list only, never down, and every file says what it is for.

use std::path::{Path, PathBuf};

/// No file tells more than one story.
const LINES_MAX: usize = 500;

#[derive(Debug)]
struct SourceFile {
    path: PathBuf,
    text: String,
}

fn source_files() -> Vec<SourceFile> {
    fn walk(folder: &Path, files: &mut Vec<SourceFile>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, files);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                files.push(SourceFile { path, text });
            }
        }
    }
    let mut files = Vec::new();
    walk(Path::new("src"), &mut files);
    assert!(files.len() > 20, "src/ was not found");
    files
}

/// The rooms in the order in which `lib.rs` declares them.
fn rooms(lib: &str) -> Vec<&str> {
    lib.lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'))
        .collect()
}

/// The room a file of `src/` belongs to; `None` for `lib.rs` and `main.rs`.
fn room_of<'a>(path: &Path, rooms: &[&'a str]) -> Option<&'a str> {
    let first = path.strip_prefix("src").unwrap().components().next()?;
    let name = Path::new(first.as_os_str()).file_stem()?.to_str()?;
    rooms.iter().find(|room| **room == name).copied()
}

/// Without comments, and without what is compiled for tests only.
fn production_code(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let bare = line.trim_start();
        if bare == "#[cfg(test)]" {
            skip_item(&mut lines);
        } else if !bare.starts_with("//") {
            code.push_str(line);
            code.push('\n');
        }
    }
    code
}

/// Skips one item as rustfmt lays it out: up to a line that closes it at the indentation
/// at which it began.
fn skip_item<'a>(lines: &mut impl Iterator<Item = &'a str>) {
    let Some(mut first) = lines.next() else {
        return;
    };
    while first.trim_start().starts_with("#[") {
        let Some(next) = lines.next() else { return };
        first = next;
    }
    if first.trim_end().ends_with([';', '}']) {
        return;
    }
    let indentation = first.len() - first.trim_start().len();
    for line in lines {
        let closes = line.trim_start().starts_with(['}', ')', ']']);
        if closes && line.len() - line.trim_start().len() == indentation {
            return;
        }
    }
}

/// Rooms named as `crate::room`, also in `use crate::{room::…, room};`.
fn rooms_used<'a>(code: &str, rooms: &[&'a str]) -> Vec<&'a str> {
    let mut used = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let names: Vec<String> = match rest.strip_prefix('{') {
            Some(group) => top_level_names(group),
            None => vec![leading_word(rest)],
        };
        used.extend(
            rooms
                .iter()
                .filter(|room| names.iter().any(|name| name == *room)),
        );
    }
    used
}

fn leading_word(text: &str) -> String {
    text.trim_start()
        .chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}

/// The first word of each entry of a brace group, up to the group's end.
fn top_level_names(group: &str) -> Vec<String> {
    let mut names = vec![leading_word(group)];
    let mut depth = 0_i32;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(leading_word(&group[at + 1..])),
            _ => {}
        }
    }
    names
}

#[test]
fn rooms_look_up_only() {
    let lib = std::fs::read_to_string("src/lib.rs").unwrap();
    let rooms = rooms(&lib);
    assert!(
        rooms.starts_with(&["faults", "pg"]) && rooms.len() > 10,
        "lib.rs was not understood: {rooms:?}"
    );
    let position = |room: &str| rooms.iter().position(|other| *other == room).unwrap();
    let mut wrong = Vec::new();
    for file in source_files() {
        let Some(room) = room_of(&file.path, &rooms) else {
            continue;
        };
        for used in rooms_used(&production_code(&file.text), &rooms) {
            if position(used) > position(room) {
                wrong.push(format!(
                    "{}: {room} looks down at {used}",
                    file.path.display()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_says_what_it_is_for_and_tells_one_story() {
    let mut wrong = Vec::new();
    for SourceFile { path, text } in source_files() {
        let path = path.display();
        if !text.starts_with("//! ") {
            wrong.push(format!(
                "{path}: does not begin with //! and what it is for"
            ));
        }
        let lines = text.lines().count();
        if lines > LINES_MAX {
            wrong.push(format!("{path}: {lines} lines, more than {LINES_MAX}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_reading_of_imports() {
    let rooms = ["pg", "conn", "apply", "pipeline"];
    let code = "use crate::pg::Lsn;\nuse crate::{conn::{self, X}, apply};\nlet x = crate::pgx::y;";
    assert_eq!(rooms_used(code, &rooms), ["pg", "conn", "apply"]);
    let text = "// crate::pipeline\nuse crate::pg;\n#[cfg(test)]\nmod tests {\n    use crate::apply;\n}\n\
                fn after() {}\n#[cfg(test)]\nmod other;\nuse crate::conn;\n";
    assert_eq!(rooms_used(&production_code(text), &rooms), ["pg", "conn"]);
    assert_eq!(room_of(Path::new("src/pg/lsn.rs"), &rooms), Some("pg"));
    assert_eq!(room_of(Path::new("src/apply.rs"), &rooms), Some("apply"));
    assert_eq!(room_of(Path::new("src/main.rs"), &rooms), None);
}
