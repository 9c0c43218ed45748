# make demo    the main job on two throw-away clusters; ARGS="--seconds 30" ends by itself
# make test    everything the project promises, on real servers
# make soak    the rest of it, at full length: thousands of kills and faults; takes about 2 hours
# make bench   speed, latency and memory beside CREATE SUBSCRIPTION; ARGS="--only tpcb --pairs 1" for a quick look
# make bench-smoke   that the bench works, in 3 minutes
# make lint    format, clippy, rustdoc, the alert rules; warnings are errors
# make check-release   that no release can be built with fail points; 2 to 5 minutes the first time

CARGO ?= cargo
ARGS ?=
# Tests at once: most of their time they wait.
THREADS ?= 4

.PHONY: demo test soak soak-hour soak-kills soak-drift soak-rest bench bench-smoke lint check-deploy check-release

demo:
	@tests/install-postgres.sh server
	@$(CARGO) build --quiet
	@$(CARGO) run --quiet -- demo $(ARGS)

test:
	@tests/install-postgres.sh
	RUST_TEST_THREADS=$(THREADS) $(CARGO) test --features faults
	@echo "make test: all tests passed"

# The hour of faults waits most of its time, and the kills a good part: the others run beside them.
soak:
	@tests/install-postgres.sh
	$(CARGO) test --features faults --no-run
	@$(MAKE) --no-print-directory -j4 soak-hour soak-kills soak-drift soak-rest

# Half an hour of a live load: nothing is invented, 1,000 planted differences are found and mended.
soak-drift:
	PGLOCKSTEP_SOAK=1 $(CARGO) test --features faults --test scenarios -- scenarios::drift --nocapture

soak-hour:
	PGLOCKSTEP_SOAK=1 $(CARGO) test --features faults --test scenarios -- kills::hour --nocapture

soak-kills:
	PGLOCKSTEP_SOAK=1 $(CARGO) test --features faults --test scenarios -- kills:: --skip kills::hour \
	--nocapture --test-threads=1

soak-rest:
	PGLOCKSTEP_SOAK=1 $(CARGO) test --features faults --lib -- --nocapture simulation fuzz
	set -e; for family in cases fail_points faults wire; do PGLOCKSTEP_SOAK=1 \
	$(CARGO) test --features faults --test scenarios -- $$family:: --nocapture --test-threads=1; done
	set -e; for major in 14 16 17 18; do PGLOCKSTEP_MAJOR=$$major \
	$(CARGO) test --features faults --test scenarios -- scenarios::; done

bench:
	@tests/install-postgres.sh server
	@$(CARGO) bench --bench speed -- $(ARGS)

# As the tests are built: it says nothing of speed.
bench-smoke:
	@tests/install-postgres.sh server
	@$(CARGO) bench --profile dev --features faults --bench speed -- --smoke $(ARGS)

lint: check-deploy
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings
	$(CARGO) clippy --all-targets --features faults -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --quiet

check-deploy:
	@PATH="$$PATH:$(CURDIR)/.pg/bin"; set -e; cd deploy/prometheus; \
	promtool check rules alerts.yml; promtool check config scrape.yml; promtool test rules alerts_test.yml

# Builds what the dependencies tell of themselves, as for a release, and stops at our own first line.
check-release:
	@if out=$$($(CARGO) check --release --locked --lib --features faults 2>&1); then \
	echo "a release can be built with the feature faults"; exit 1; fi; case "$$out" in \
	*"no release can be built with it"*) echo "check-release: refused, as it must be";; \
	*) printf '%s\n' "$$out"; exit 1;; esac
