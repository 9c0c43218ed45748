# make demo    the main job on two throw-away clusters; ARGS="--seconds 30" ends by itself
# make test    everything the project promises, on real servers
# make figures speed and memory beside CREATE SUBSCRIPTION; ARGS="--rounds 1" for a quick look
# make lint    format, clippy, rustdoc, the alert rules; warnings are errors

CARGO ?= cargo
ARGS ?=

.PHONY: demo test figures lint check-deploy

demo:
	@tests/install-postgres.sh server
	@$(CARGO) build --quiet
	@$(CARGO) run --quiet -- demo $(ARGS)

test:
	@tests/install-postgres.sh
	$(CARGO) test --features faults
	@echo "make test: all tests passed"

figures:
	@tests/install-postgres.sh server
	@$(CARGO) bench --bench figures -- $(ARGS)

lint: check-deploy
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings
	$(CARGO) clippy --all-targets --features faults -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --quiet

check-deploy:
	@PATH="$$PATH:$(CURDIR)/.pg/bin"; set -e; cd deploy/prometheus; \
	promtool check rules alerts.yml; promtool check config scrape.yml; promtool test rules alerts_test.yml
