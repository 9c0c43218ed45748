-- What a DBA does once on the source: a role that can only read, and the publication.
\getenv password PGLOCKSTEP_PASSWORD

CREATE ROLE pglockstep LOGIN REPLICATION CONNECTION LIMIT 16 PASSWORD :'password';
ALTER ROLE pglockstep SET default_transaction_read_only = on;
-- To see whether the daemon that holds the slot still lives, before its walsender is ended.
GRANT pg_read_all_stats TO pglockstep;

GRANT USAGE ON SCHEMA public TO pglockstep;
GRANT SELECT ON public.clients, public.projects, public.leads, public.conversations,
    public.whatsapp_messages, public.agent_interaction_logs, public.lead_status_history TO pglockstep;

CREATE PUBLICATION pglockstep_crm FOR TABLE public.clients, public.projects, public.leads, public.conversations,
    public.whatsapp_messages, public.agent_interaction_logs, public.lead_status_history;
