-- Names only: nothing is added or removed.
ALTER TABLE seals RENAME TO recorded_roots;
ALTER TABLE recorded_roots RENAME COLUMN proved_by TO verified_by;
ALTER TABLE touched RENAME TO unverified_readback;
ALTER TABLE uncompared RENAME TO unverified_compare;
ALTER TABLE verifications RENAME TO verify_cursors;
ALTER TABLE verify_cursors RENAME COLUMN sure_to TO checked_to;
ALTER TABLE verdicts RENAME TO verify_results;
DROP INDEX verdicts_of_a_migration;
CREATE INDEX verify_results_of_a_migration ON verify_results (migration);
ALTER TABLE recent RENAME TO manifest_log;
ALTER TABLE recent_hashes RENAME TO manifest_log_hashes;
ALTER TABLE recent_counts RENAME TO manifest_log_counts;
ALTER TABLE places RENAME TO location_claims;
ALTER TABLE location_claims RENAME COLUMN place TO location;
DROP INDEX places_of_a_migration;
CREATE INDEX location_claims_of_a_migration ON location_claims (migration, disk);
ALTER TABLE disks RENAME COLUMN place TO requested_location;
ALTER TABLE disks RENAME COLUMN audited_to TO audit_cursor;
ALTER TABLE migrations RENAME COLUMN start_asked TO start_requested_at;
ALTER TABLE migrations RENAME COLUMN create_asked TO create_requested;
ALTER TABLE migrations RENAME COLUMN given_over TO handed_over_at;
ALTER TABLE migrations RENAME COLUMN taken_back TO reclaimed_at;
ALTER TABLE migrations RENAME COLUMN appointment TO scheduled_cutover;
ALTER TABLE migrations RENAME COLUMN learned TO change_rates;
ALTER TABLE migrations RENAME COLUMN held_off TO hold_off;
ALTER TABLE migrations RENAME COLUMN watch_until TO monitor_until;
ALTER TABLE migrations RENAME COLUMN source_ran TO source_seen_running_at;
ALTER TABLE migrations RENAME COLUMN waited TO barrier_wait;
ALTER TABLE limits RENAME COLUMN said_rate TO configured_rate;
ALTER TABLE limits RENAME COLUMN said_requests TO configured_requests;
ALTER TABLE groups RENAME COLUMN broken TO halted;
ALTER TABLE phases RENAME COLUMN cut TO interrupted;
-- Words within rows. A cutover under way must find its phases and its hooks again: their keys hold the phase's name.
UPDATE phases SET phase = CASE phase WHEN 'last-delta' THEN 'catch-up-delta' WHEN 'watch' THEN 'boot-check' WHEN 'release' THEN 'cleanup' END
    WHERE phase IN ('last-delta', 'watch', 'release');
UPDATE hooks SET phase = CASE phase WHEN 'last-delta' THEN 'catch-up-delta' WHEN 'watch' THEN 'boot-check' WHEN 'release' THEN 'cleanup' END
    WHERE phase IN ('last-delta', 'watch', 'release');
