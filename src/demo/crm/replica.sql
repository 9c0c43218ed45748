-- The demo's replica: the same CRM in a schema of its own, as a reporting team would have it.
--
-- Against the source: another schema with its own enums; leads without internal_notes, with
-- project_id for current_project_id, email_domain computed by the mapping, arrived_at and
-- owner_team local; other column orders; wider types (phone, money); no debug lines in
-- the agent's log. Foreign keys are deferrable, so that a role that may not set
-- session_replication_role can write in the source's order too.

CREATE SCHEMA crm;

CREATE TYPE crm.lead_state AS ENUM
    ('new', 'contacted', 'qualifying', 'qualified', 'proposal', 'negotiation', 'won', 'lost', 'dormant');
CREATE TYPE crm.bant_status AS ENUM ('unknown', 'partial', 'complete', 'disqualified');
CREATE TYPE crm.message_author AS ENUM ('lead', 'agent', 'human');

CREATE TABLE crm.clients (
    id bigint PRIMARY KEY,
    name text NOT NULL,
    industry text NOT NULL,
    country char(2) NOT NULL,
    is_active boolean NOT NULL,
    billing_email text NOT NULL,
    settings jsonb NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);

CREATE TABLE crm.projects (
    id bigint PRIMARY KEY,
    client_id bigint NOT NULL REFERENCES crm.clients (id) DEFERRABLE,
    name text NOT NULL,
    description text,
    currency char(3) NOT NULL,
    budget numeric(14, 2) NOT NULL,
    spent numeric(14, 2) NOT NULL,
    starts_on date NOT NULL,
    ends_on date,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
CREATE INDEX projects_client_id_idx ON crm.projects (client_id);

CREATE TABLE crm.leads (
    id bigint PRIMARY KEY,
    client_id bigint NOT NULL REFERENCES crm.clients (id) DEFERRABLE,
    project_id bigint REFERENCES crm.projects (id) DEFERRABLE,
    state crm.lead_state NOT NULL,
    bant_status crm.bant_status NOT NULL,
    name text NOT NULL,
    email text,
    email_domain text,
    phone text NOT NULL,
    state_status_metadata jsonb NOT NULL,
    lead_metadata jsonb NOT NULL,
    last_message_from crm.message_author,
    first_interaction timestamptz,
    last_interaction timestamptz,
    interaction_count integer NOT NULL,
    next_follow_up timestamptz,
    follow_up_count integer NOT NULL,
    requires_human_review boolean NOT NULL,
    last_agent_processed_at timestamptz,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    arrived_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    owner_team text NOT NULL DEFAULT 'unassigned'
);
CREATE INDEX leads_client_id_idx ON crm.leads (client_id);
CREATE INDEX leads_project_id_idx ON crm.leads (project_id);
CREATE INDEX leads_email_domain_idx ON crm.leads (email_domain);

CREATE TABLE crm.conversations (
    id uuid PRIMARY KEY,
    lead_id bigint NOT NULL REFERENCES crm.leads (id) DEFERRABLE,
    channel text NOT NULL,
    status text NOT NULL,
    short_term_context jsonb NOT NULL,
    long_term_context jsonb,
    summary text,
    message_count integer NOT NULL,
    started_at timestamptz NOT NULL,
    last_message_at timestamptz,
    updated_at timestamptz NOT NULL
);
CREATE INDEX conversations_lead_id_idx ON crm.conversations (lead_id);

-- direction is an enum on the source and text here.
CREATE TABLE crm.whatsapp_messages (
    id bigint PRIMARY KEY,
    conversation_id uuid NOT NULL REFERENCES crm.conversations (id) DEFERRABLE,
    lead_id bigint NOT NULL REFERENCES crm.leads (id) DEFERRABLE,
    wamid text NOT NULL UNIQUE,
    direction text NOT NULL,
    sent_at timestamptz NOT NULL,
    delivered_at timestamptz,
    read_at timestamptz,
    body text,
    payload jsonb NOT NULL
);
CREATE INDEX whatsapp_messages_conversation_id_idx ON crm.whatsapp_messages (conversation_id);
CREATE INDEX whatsapp_messages_lead_id_idx ON crm.whatsapp_messages (lead_id, sent_at);

CREATE TABLE crm.agent_interaction_logs (
    id bigint PRIMARY KEY,
    lead_id bigint NOT NULL REFERENCES crm.leads (id) DEFERRABLE,
    conversation_id uuid REFERENCES crm.conversations (id) DEFERRABLE,
    agent text NOT NULL,
    level text NOT NULL CHECK (level <> 'debug'),
    tokens_used integer NOT NULL,
    cost_usd numeric(12, 6) NOT NULL,
    latency interval NOT NULL,
    tools text[] NOT NULL,
    details jsonb NOT NULL,
    created_at timestamptz NOT NULL
);
CREATE INDEX agent_interaction_logs_lead_id_idx ON crm.agent_interaction_logs (lead_id);
CREATE INDEX agent_interaction_logs_conversation_id_idx ON crm.agent_interaction_logs (conversation_id);

CREATE TABLE crm.lead_status_history (
    id bigint PRIMARY KEY,
    lead_id bigint NOT NULL REFERENCES crm.leads (id) DEFERRABLE,
    from_state crm.lead_state,
    to_state crm.lead_state NOT NULL,
    changed_by crm.message_author NOT NULL,
    reason text,
    changed_at timestamptz NOT NULL
);
CREATE INDEX lead_status_history_lead_id_idx ON crm.lead_status_history (lead_id, changed_at);
