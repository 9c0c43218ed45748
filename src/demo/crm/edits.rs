//! What the live workload's transactions do to the source's rows.
//!
//! Order of locks: the lead first, then its conversation, messages, log and project. What
//! changes no lead locks rows of one table only, and takes none that is held. So two
//! connections cannot wait for each other in a circle.

use super::random::Random;
use tokio_postgres::{Error, Transaction};

const STATES: [&str; 9] = [
    "new",
    "contacted",
    "qualifying",
    "qualified",
    "proposal",
    "negotiation",
    "won",
    "lost",
    "dormant",
];

const BODIES: [&str; 6] = [
    "Hola, ¿sigue disponible?",
    "Yes. When would suit you?",
    "Can I pay in 24 months?\nThanks 🙂",
    "It's the \"corner\" one, 100% sure\\",
    "見学は土曜日にできますか",
    "",
];

/// A lead that this transaction holds, with its conversation.
pub(super) struct Lead {
    id: i64,
    state: String,
    conversation: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Inbound,
    Outbound,
}

/// Takes the first free lead at or after a random number.
pub(super) async fn lock_lead(
    tx: &Transaction<'_>,
    random: &mut Random,
) -> Result<Option<Lead>, Error> {
    let row = tx
        .query_opt(
            "SELECT l.id, l.state::text, c.id::text
             FROM public.leads l JOIN public.conversations c ON c.lead_id = l.id
             WHERE l.id > (SELECT max(id) FROM public.leads) * $1::bigint / 1000000
             ORDER BY l.id LIMIT 1 FOR UPDATE OF l SKIP LOCKED",
            &[&millionths(random)],
        )
        .await?;
    Ok(row.map(|row| Lead {
        id: row.get(0),
        state: row.get(1),
        conversation: row.get(2),
    }))
}

/// A place in a table, in millionths of its largest key.
fn millionths(random: &mut Random) -> i64 {
    i64::from(random.below(1_000_000))
}

pub(super) async fn new_lead(tx: &Transaction<'_>, random: &mut Random) -> Result<bool, Error> {
    let first = random.pick(&["Ana", "Bruno", "Féliks", "花子", "O'Brien"]);
    let last = random.pick(&["García", "Müller", "de la \"Rosa\"", "Smith"]);
    let email = format!(
        "{first}.{}@{}",
        random.below(1_000_000),
        random.pick(&["Example.com", "mail.EXAMPLE", "example.org"])
    );
    let email = (!random.one_in(12)).then_some(email);
    let phone = format!("+34 6{:08}", random.below(100_000_000));
    let notes = random
        .one_in(5)
        .then(|| format!("Private: {}", random.noise(1)));
    let Some(row) = tx
        .query_opt(
            "INSERT INTO public.leads (client_id, name, email, phone, lead_metadata, first_interaction, internal_notes)
             SELECT id, $2, $3, $4, jsonb_build_object('score', $5::int), now(), $6 FROM public.clients
             WHERE id > (SELECT max(id) FROM public.clients) * $1::bigint / 1000000 ORDER BY id LIMIT 1
             RETURNING id",
            &[
                &millionths(random),
                &format!("{first} {last}"),
                &email,
                &phone,
                &i32::try_from(random.below(100)).unwrap_or_default(),
                &notes,
            ],
        )
        .await?
    else {
        return Ok(false);
    };
    let id: i64 = row.get(0);
    let memory = random.one_in(3).then(|| random.noise(500));
    let row = tx
        .query_one(
            "INSERT INTO public.conversations (id, lead_id, long_term_context)
             VALUES (gen_random_uuid(), $1, jsonb_build_object('memory', $2::text)) RETURNING id::text",
            &[&id, &memory],
        )
        .await?;
    let lead = Lead {
        id,
        state: "new".into(),
        conversation: row.get(0),
    };
    record_state(tx, &lead, None, "new", "first contact").await?;
    for turn in 0..=random.below(3) {
        let direction = if turn % 2 == 0 {
            Direction::Inbound
        } else {
            Direction::Outbound
        };
        message(tx, random, &lead, direction).await?;
    }
    Ok(true)
}

/// A message, what it means for the conversation and the lead, and the agent's log line.
///
/// The conversation's `long_term_context` is left alone: a TOASTed one is not sent.
pub(super) async fn message(
    tx: &Transaction<'_>,
    random: &mut Random,
    lead: &Lead,
    direction: Direction,
) -> Result<(), Error> {
    let (direction_name, author) = match direction {
        Direction::Inbound => ("inbound", "lead"),
        Direction::Outbound => ("outbound", random.pick(&["agent", "agent", "human"])),
    };
    let body = (!random.one_in(15)).then(|| random.pick(&BODIES));
    let thumbnail = random.one_in(20).then(|| random.noise(400));
    // The id comes first, since wamid is made of it: unique whatever the seed and the connection.
    tx.execute(
        "INSERT INTO public.whatsapp_messages (id, conversation_id, lead_id, wamid, direction, body, payload, sent_at)
         SELECT id, $1::text::uuid, $2, 'wamid.live.' || id, $3::text::public.message_direction, $4::text,
                jsonb_strip_nulls(jsonb_build_object('type', 'text', 'thumbnail', $5::text)), clock_timestamp()
         FROM nextval('public.whatsapp_messages_id_seq') AS id",
        &[&lead.conversation, &lead.id, &direction_name, &body, &thumbnail],
    )
    .await?;
    tx.execute(
        "UPDATE public.conversations
         SET short_term_context = short_term_context || jsonb_build_object('turn', message_count + 1, 'intent', $2::text),
             message_count = message_count + 1, last_message_at = clock_timestamp(), status = $3, updated_at = now()
         WHERE id = $1::text::uuid",
        &[
            &lead.conversation,
            &random.pick(&["price", "visit", "financing"]),
            &if direction == Direction::Inbound { "open" } else { "waiting" },
        ],
    )
    .await?;
    tx.execute(
        "UPDATE public.leads
         SET last_interaction = clock_timestamp(), interaction_count = interaction_count + 1,
             last_message_from = $2::text::public.message_author, updated_at = now()
         WHERE id = $1",
        &[&lead.id, &author],
    )
    .await?;
    write_log(tx, random, lead).await
}

async fn write_log(tx: &Transaction<'_>, random: &mut Random, lead: &Lead) -> Result<(), Error> {
    let level = random.pick(&["info", "info", "debug", "warning", "error"]);
    let tools: Vec<&str> = ["search", "calendar", "crm lookup"]
        .into_iter()
        .filter(|_| random.one_in(2))
        .collect();
    tx.execute(
        "INSERT INTO public.agent_interaction_logs
             (lead_id, conversation_id, agent, level, tokens_used, cost_usd, latency, tools, details)
         VALUES ($1, $2::text::uuid, $3, $4, $5::int, $5::int * 0.000003, $6::int * interval '1 millisecond', $7,
                 jsonb_build_object('prompt_version', 'v8'))",
        &[
            &lead.id,
            &lead.conversation,
            &random.pick(&["qualifier", "scheduler", "closer"]),
            &level,
            &i32::try_from(random.below(3000)).unwrap_or_default(),
            &i32::try_from(random.below(9000)).unwrap_or_default(),
            &tools,
        ],
    )
    .await?;
    Ok(())
}

pub(super) async fn state_change(
    tx: &Transaction<'_>,
    random: &mut Random,
    lead: &Lead,
) -> Result<(), Error> {
    let to = random.pick(&STATES);
    tx.execute(
        "UPDATE public.leads
         SET state = $2::text::public.lead_state, updated_at = now(),
             bant_status = $3::text::public.bant_status,
             state_status_metadata = state_status_metadata || jsonb_build_object('from', $4::text, 'by', 'agent'),
             requires_human_review = $5, last_agent_processed_at = clock_timestamp()
         WHERE id = $1",
        &[
            &lead.id,
            &to,
            &random.pick(&["unknown", "partial", "complete", "disqualified"]),
            &lead.state,
            &random.one_in(10),
        ],
    )
    .await?;
    record_state(
        tx,
        lead,
        Some(&lead.state),
        to,
        random.pick(&["budget agreed", "no answer", "asked for a visit"]),
    )
    .await
}

async fn record_state(
    tx: &Transaction<'_>,
    lead: &Lead,
    from: Option<&str>,
    to: &str,
    reason: &str,
) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO public.lead_status_history (lead_id, from_state, to_state, changed_by, reason)
         VALUES ($1, $2::text::public.lead_state, $3::text::public.lead_state, 'agent', $4)",
        &[&lead.id, &from, &to, &reason],
    )
    .await?;
    Ok(())
}

/// The lead moves to another project, or to none; the project is charged. Its description stays.
pub(super) async fn reassignment(
    tx: &Transaction<'_>,
    random: &mut Random,
    lead: &Lead,
) -> Result<(), Error> {
    let place = (!random.one_in(6)).then(|| millionths(random));
    tx.execute(
        "UPDATE public.leads SET updated_at = now(), current_project_id =
             (SELECT min(id) FROM public.projects WHERE id > (SELECT max(id) FROM public.projects) * $2::bigint / 1000000)
         WHERE id = $1",
        &[&lead.id, &place],
    )
    .await?;
    tx.execute(
        "UPDATE public.projects SET spent = spent + $2::bigint * 0.01, updated_at = now()
         WHERE id = (SELECT current_project_id FROM public.leads WHERE id = $1)",
        &[&lead.id, &i64::from(random.below(50_000))],
    )
    .await?;
    Ok(())
}

pub(super) async fn follow_up_sweep(
    tx: &Transaction<'_>,
    random: &mut Random,
) -> Result<bool, Error> {
    let swept = tx
        .execute(
            "UPDATE public.leads
             SET follow_up_count = follow_up_count + 1, next_follow_up = now() + $2::int * interval '1 hour', updated_at = now()
             WHERE id IN (SELECT id FROM public.leads
                          WHERE id > (SELECT max(id) FROM public.leads) * $1::bigint / 1000000
                          ORDER BY id LIMIT 25 FOR UPDATE SKIP LOCKED)",
            &[&millionths(random), &i32::try_from(random.below(72)).unwrap_or_default()],
        )
        .await?;
    Ok(swept > 0)
}

/// A reply that is taken back: its rows reach the log of the source and must not reach the replica.
pub(super) async fn abandoned_reply(
    tx: &mut Transaction<'_>,
    random: &mut Random,
    lead: &Lead,
) -> Result<(), Error> {
    tx.execute(
        "UPDATE public.leads SET internal_notes = $2, updated_at = now() WHERE id = $1",
        &[
            &lead.id,
            &format!("Private: reply taken back {}", random.noise(1)),
        ],
    )
    .await?;
    let savepoint = tx.savepoint("reply").await?;
    message(&savepoint, random, lead, Direction::Outbound).await?;
    savepoint
        .execute(
            "DELETE FROM public.lead_status_history WHERE lead_id = $1",
            &[&lead.id],
        )
        .await?;
    savepoint.rollback().await?;
    write_log(tx, random, lead).await
}

/// A log line becomes debug, or stops being so: by the mapping's `where` it leaves the replica, or enters it.
pub(super) async fn log_review(tx: &Transaction<'_>, random: &mut Random) -> Result<bool, Error> {
    let reviewed = tx
        .execute(
            "UPDATE public.agent_interaction_logs
             SET level = CASE level WHEN 'debug' THEN 'info' ELSE 'debug' END,
                 details = details || '{\"reviewed\": true}'
             WHERE id = (SELECT id FROM public.agent_interaction_logs
                         WHERE id > (SELECT max(id) FROM public.agent_interaction_logs) * $1::bigint / 1000000
                         ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)",
            &[&millionths(random)],
        )
        .await?;
    Ok(reviewed > 0)
}

pub(super) async fn client_settings(
    tx: &Transaction<'_>,
    random: &mut Random,
) -> Result<bool, Error> {
    let changed = tx
        .execute(
            "UPDATE public.clients
             SET settings = settings || jsonb_build_object('daily_limit', $2::int), updated_at = now()
             WHERE id = (SELECT id FROM public.clients
                         WHERE id > (SELECT max(id) FROM public.clients) * $1::bigint / 1000000
                         ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)",
            &[&millionths(random), &i32::try_from(random.below(500)).unwrap_or_default()],
        )
        .await?;
    Ok(changed > 0)
}

/// The lead goes, and by cascade everything that hangs on it.
pub(super) async fn delete_lead(tx: &Transaction<'_>, lead: &Lead) -> Result<(), Error> {
    tx.execute("DELETE FROM public.leads WHERE id = $1", &[&lead.id])
        .await?;
    Ok(())
}
