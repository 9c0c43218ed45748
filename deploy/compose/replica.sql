-- What a DBA does once on the replica: a role that writes the mapped tables and keeps its books.
\getenv password PGLOCKSTEP_PASSWORD

CREATE ROLE pglockstep LOGIN CONNECTION LIMIT 16 PASSWORD :'password';

GRANT USAGE ON SCHEMA crm TO pglockstep;
GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA crm TO pglockstep;
-- PostgreSQL 15 and later. Without it, foreign keys have to be deferrable and triggers absent.
GRANT SET ON PARAMETER session_replication_role TO pglockstep;

-- Positions and table states, written in the same transactions as the data.
CREATE SCHEMA pglockstep AUTHORIZATION pglockstep;
