-- Every kind of message a server can be made to send, on one session.

-- Values and replica identities.
BEGIN;
INSERT INTO public.by_key VALUES (1, 'ä', 'sad'), (2, NULL, 'it''s ok'), (3, '', NULL);
UPDATE public.by_key SET note = 'same key' WHERE id = 1;
UPDATE public.by_key SET id = 20 WHERE id = 2;
DELETE FROM public.by_key WHERE id = 3;
COMMIT;
BEGIN;
INSERT INTO public.by_index VALUES (1, 'one', 'c');
UPDATE public.by_index SET c = NULL;
UPDATE public.by_index SET b = 'two';
DELETE FROM public.by_index;
COMMIT;
BEGIN;
INSERT INTO "Odd ""schema"."täble.full" VALUES (1.5, (1, 'x,"y'), NULL);
UPDATE "Odd ""schema"."täble.full" SET n = 7;
DELETE FROM "Odd ""schema"."täble.full";
INSERT INTO public.by_nothing VALUES (1);
INSERT INTO public.no_columns DEFAULT VALUES;
COMMIT;

-- A long value: sent, left alone, left alone while the key changes.
INSERT INTO public.long VALUES (1, repeat('x', 2500), 0);
UPDATE public.long SET n = 1;
UPDATE public.long SET id = 2;
ALTER TABLE public.long REPLICA IDENTITY FULL;
UPDATE public.long SET n = 2;
DELETE FROM public.long;

-- Only what was kept.
BEGIN;
INSERT INTO public.by_key VALUES (30, 'kept', NULL);
SAVEPOINT a;
INSERT INTO public.by_key VALUES (31, 'rolled back', NULL);
ROLLBACK TO a;
INSERT INTO public.by_key VALUES (32, 'kept', NULL);
COMMIT;
BEGIN;
INSERT INTO public.by_key VALUES (33, 'rolled back', NULL);
ROLLBACK;

-- A table that changes its shape.
ALTER TABLE public.by_nothing RENAME COLUMN id TO identifier;
ALTER TABLE public.by_nothing ADD COLUMN more text DEFAULT 'there';
INSERT INTO public.by_nothing VALUES (2);

-- Truncation.
TRUNCATE public.long;
TRUNCATE public.by_key, public.by_index RESTART IDENTITY CASCADE;

-- Messages.
SELECT pg_logical_emit_message(false, 'at once', 'content');
BEGIN;
SELECT pg_logical_emit_message(true, 'with it', decode('00ff', 'hex'));
INSERT INTO public.by_key VALUES (40, 'after a message', NULL);
COMMIT;

-- A transaction that came from elsewhere.
SELECT pg_replication_origin_session_setup('elsewhere');
BEGIN;
SELECT pg_replication_origin_xact_setup('0/ABCDEF', '2024-02-29 12:00:00+00');
INSERT INTO public.by_key VALUES (50, 'from elsewhere', NULL);
COMMIT;
SELECT pg_replication_origin_session_reset();

-- Larger than logical_decoding_work_mem, by rows that are not published.
BEGIN;
INSERT INTO public.by_key VALUES (60, 'large', NULL);
SAVEPOINT a;
INSERT INTO public.by_key VALUES (61, 'sent, then rolled back', 'sad');
INSERT INTO public.unpublished SELECT generate_series(1, 2000);
ROLLBACK TO a;
SAVEPOINT b;
UPDATE public.by_key SET note = 'large, kept' WHERE id = 60;
SELECT pg_logical_emit_message(true, 'large', 'inside');
TRUNCATE public.child;
INSERT INTO public.unpublished SELECT generate_series(1, 2000);
RELEASE b;
DELETE FROM public.by_key WHERE id = 60;
COMMIT;
BEGIN;
INSERT INTO public.by_key VALUES (62, 'large', NULL);
INSERT INTO public.unpublished SELECT generate_series(1, 2000);
ROLLBACK;

-- In two phases.
BEGIN;
INSERT INTO public.by_key VALUES (70, 'prepared', NULL);
PREPARE TRANSACTION 'commits';
COMMIT PREPARED 'commits';
BEGIN;
INSERT INTO public.by_key VALUES (71, 'prepared', NULL);
PREPARE TRANSACTION 'rolls back';
ROLLBACK PREPARED 'rolls back';
BEGIN;
INSERT INTO public.by_key VALUES (72, 'prepared, large', NULL);
INSERT INTO public.unpublished SELECT generate_series(1, 2000);
PREPARE TRANSACTION 'large';
COMMIT PREPARED 'large';
