-- What tests/golden/changes.sql writes to. Made before the slot, so not in the stream.
CREATE TYPE public.mood AS ENUM ('sad', 'it''s ok');
CREATE SCHEMA "Odd ""schema";
CREATE DOMAIN "Odd ""schema"."dom ain" AS numeric(8, 3);
CREATE TYPE public.pair AS (a int, b text);
CREATE TABLE public.by_key (id int PRIMARY KEY, note text, feeling public.mood);
CREATE TABLE public.by_index (a int NOT NULL, b varchar(7) NOT NULL, c text, UNIQUE (b, a));
ALTER TABLE public.by_index REPLICA IDENTITY USING INDEX by_index_b_a_key;
CREATE TABLE "Odd ""schema"."täble.full" ("the Cölumn" "Odd ""schema"."dom ain", p public.pair, n int);
ALTER TABLE "Odd ""schema"."täble.full" REPLICA IDENTITY FULL;
CREATE TABLE public.by_nothing (id int);
ALTER TABLE public.by_nothing REPLICA IDENTITY NOTHING;
CREATE TABLE public.long (id int PRIMARY KEY, body text, n int);
ALTER TABLE public.long ALTER body SET STORAGE EXTERNAL;
CREATE TABLE public.child (id serial PRIMARY KEY, parent int REFERENCES public.by_key);
CREATE TABLE public.no_columns ();
ALTER TABLE public.no_columns REPLICA IDENTITY FULL;
CREATE TABLE public.unpublished (n int);
CREATE PUBLICATION p FOR TABLE public.by_key, public.by_index, "Odd ""schema"."täble.full",
    public.by_nothing, public.long, public.child, public.no_columns;
SELECT pg_replication_origin_create('elsewhere');
-- A slot made for two phases sends them to readers that did not ask: it is the slot that decides.
SELECT pg_create_logical_replication_slot('one_phase', 'pgoutput', false, false);
SELECT pg_create_logical_replication_slot('two_phase', 'pgoutput', false, true);
