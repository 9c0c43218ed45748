//! The first copy: from nothing until every table is in step and the stream runs.

use anyhow::{Context, Result};

use crate::arguments::{Arguments, Size};
use crate::contender::{Contender, Running, SUBSCRIPTION, is_in_step, subscription};
use crate::drain::Begun;
use crate::ground::{DATABASE, Ground};
use crate::report::{Results, Work};
use crate::workload::{Step, thousands};

#[derive(Clone)]
pub struct Copy {
    pub name: &'static str,
    title: String,
    at_least: f64,
    tables: u32,
    rows_of_each: u32,
    /// What pglockstep's configuration says of it.
    settings: &'static str,
}

pub fn all(size: Size) -> Vec<Copy> {
    let copy = |name, at_least, tables: u32, rows_of_each: u32| {
        let rows = thousands(u64::from(tables) * u64::from(rows_of_each));
        let title = match tables {
            1 => format!("first copy, one table, {rows} rows"),
            _ => format!("first copy, {tables} tables, {rows} rows"),
        };
        Copy {
            name,
            title,
            at_least,
            tables,
            rows_of_each,
            settings: "",
        }
    };
    let large = copy("copy-large", 1.5, 1, size.of(2_000_000));
    let after = Copy {
        name: "copy-after",
        title: format!("{}, `[copy] indexes = \"after\"`", large.title),
        settings: "[copy]\nindexes = \"after\"\n",
        ..large.clone()
    };
    vec![
        large,
        after,
        copy(
            "copy-many",
            1.2,
            size.at_least(200, 10),
            size.at_least(5_000, 500),
        ),
    ]
}

impl Copy {
    fn schema(&self) -> String {
        self.each(
            "CREATE TABLE copied%s (id bigint PRIMARY KEY, kind int NOT NULL, amount numeric(12, 2), \
             name text, made timestamptz, is_open boolean, ratio float8)",
        )
    }

    fn seed(&self) -> String {
        let rows = self.rows_of_each;
        self.each(&format!(
            "INSERT INTO copied%s SELECT i, i %% 1000, (i %% 99991) / 7.0, ''row number '' || i, \
             ''2024-01-01 00:00+00''::timestamptz + i * interval ''1 second'', i %% 3 = 0, i / 3.0 \
             FROM generate_series(1, {rows}) AS i"
        ))
    }

    fn each(&self, statement: &str) -> String {
        let tables = self.tables;
        format!(
            "DO $do$ BEGIN FOR n IN 1..{tables} LOOP EXECUTE format('{statement}', n); END LOOP; END $do$"
        )
    }
}

pub async fn measure(copy: &Copy, arguments: &Arguments, results: &mut Results) -> Result<()> {
    println!("\n{}: {}", copy.name, copy.title);
    let mut ground = Ground::start(arguments).await?;
    ground.make_tables(&copy.schema(), "").await?;
    ground.take(&[Step::Sql(copy.seed())]).await?;
    ground.vacuum(&ground.source).await?;
    let expected = ground.expected_tables().await?;
    ground.put_aside().await?;
    let rows = u64::from(copy.tables) * u64::from(copy.rows_of_each);
    results.works.push(Work {
        name: copy.name.to_owned(),
        title: copy.title.clone(),
        at_least: Some(copy.at_least),
        changes: rows,
        ceilings: Default::default(),
    });
    for pair in 0..arguments.pairs {
        let mut contenders = vec![Contender::Native, Contender::Ours];
        contenders.retain(|contender| arguments.wants(*contender));
        if pair % 2 == 1 {
            contenders.reverse();
        }
        for contender in contenders {
            ground.restore().await?;
            let run = async {
                let begun = Begun::now(&ground).await?;
                let mut running = run(&ground, contender, copy.settings, arguments).await?;
                let name = copy.name;
                let sample = begun
                    .sample(&ground, name, contender, pair, &mut running)
                    .await?;
                ground.must_equal(&expected).await?;
                if let Running::Daemon(daemon) = running {
                    daemon.terminate()?;
                }
                anyhow::Ok(sample)
            };
            let mut sample = run.await.with_context(|| contender.name())?;
            sample.changes = rows;
            // Those that copied have ended by now.
            (sample.source_busiest, sample.replica_busiest) = (None, None);
            sample.print();
            results.samples.push(sample);
        }
    }
    Ok(())
}

async fn run(
    ground: &Ground,
    contender: Contender,
    settings: &str,
    arguments: &Arguments,
) -> Result<Running> {
    let source = ground.source.connect(DATABASE).await?;
    let replica = ground.replica.connect(DATABASE).await?;
    let mut running = if contender == Contender::Native {
        let options = format!(
            "binary = true, streaming = {}, slot_name = {SUBSCRIPTION}",
            arguments.native_streaming()
        );
        let create = subscription(ground, &options);
        replica.batch_execute(&create).await?;
        Running::Native
    } else {
        Running::begin(ground, contender, settings).await?
    };
    let fact = async || is_in_step(contender, &source, &replica).await;
    running.wait_until("the first copy", fact).await?;
    Ok(running)
}
