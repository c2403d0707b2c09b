# make demo: a small environment and the bedside reader on the built-in phantom.
# make test: everything else, then lint, types, house rules and tests.
# make appliance: one offline file for other boxes, in build/. make install: this machine becomes a box.
# make test-capture: capture on a real kernel's V4L2 and power cuts, in a small virtual machine.
# make test-appliance: a box installed, booted in a container, hung, updated and rolled back; and a whole one in
#   a virtual machine, with a stick (as root).
# make test-arm64: the wheel and the offline file on an emulated arm64, compared with this machine.

PYTHON ?= python3
DEVICE := .venv-device
DESK := .venv-desk
DATA ?= ../shared/data
ARCH ?= $(shell uname -m)
PYTHONS ?= 3.10 3.11 3.13
DEBIAN ?= bookworm trixie

DESKTOP := xvfb x11-xkb-utils xdotool gcc libc6-dev chromium orthanc dcmtk dicom3tools tesseract-ocr poppler-utils \
	gcc-avr avr-libc libsimavr-dev libelf-dev cppcheck avrdude arduino-core-avr systemd mosquitto shellcheck \
	cage xwayland e2fsprogs
MACHINE := qemu-system-x86 linux-image-amd64 busybox-static cpio kmod udev dmsetup e2fsprogs
CONTAINER := $(MACHINE) mmdebstrap systemd-container dosfstools mtools

.PHONY: demo test appliance install test-capture test-appliance test-arm64 lint clean

demo: $(DEVICE)/.done
	$(DEVICE)/bin/sonoglance demo

test: $(DESK)/.done
	@PATH=$$PATH:/usr/sbin; \
	{ command -v Xvfb && command -v xdotool && command -v gcc && command -v chromium && command -v Orthanc \
	  && command -v dcmdump && command -v dciodvfy && command -v tesseract && command -v pdftoppm \
	  && command -v avr-gcc && command -v cppcheck && command -v avrdude && command -v systemd-analyze && command -v mosquitto && command -v cage && command -v mke2fs && command -v Xwayland && command -v shellcheck && ls /usr/include/simavr /usr/include/libelf.h /usr/share/arduino/hardware/arduino/avr; } >/dev/null \
	  || { apt-get update -qq && apt-get install -y -qq $(DESKTOP) >/dev/null; } \
	  || echo "tests of windows, pages, DICOM, accelerators, the panel and the appliance need: sudo apt-get install $(DESKTOP)"
	$(MAKE) lint
	SONOGLANCE_DATA=$(DATA) $(DESK)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

appliance: $(DEVICE)/.done
	$(DEVICE)/bin/pip install --quiet --disable-pip-version-check packaging
	$(DEVICE)/bin/python -m systemd.appliance --arch $(ARCH) --pythons "$(PYTHONS)" --debian "$(DEBIAN)" $(if $(KEY),--key $(KEY))

install: $(DEVICE)/.done
	$(DEVICE)/bin/pip install --quiet --disable-pip-version-check packaging
	$(DEVICE)/bin/python -m systemd.appliance --here
	$$(test "$$(id -u)" = 0 || echo sudo) sh $$(ls -t build/sonoglance-*-$$(uname -m).run | head -n 1)

test-appliance: $(DESK)/.done
	@{ command -v mmdebstrap && command -v systemd-nspawn && command -v mcopy && command -v qemu-system-x86_64; } >/dev/null 2>&1 \
	  || { apt-get update -qq && apt-get install -y -qq --no-install-recommends $(CONTAINER) >/dev/null; } \
	  || echo "needs: sudo apt-get install $(CONTAINER)"
	$(DESK)/bin/python -m pytest -m appliance tests/appliance

test-arm64: $(DESK)/.done
	SONOGLANCE_DATA=$(DATA) $(DESK)/bin/python -m tests.arm64

test-capture: $(DESK)/.done
	@{ command -v qemu-system-x86_64 && command -v busybox && command -v cpio && command -v udevadm && command -v dmsetup && command -v mkfs.ext4 && ls /boot/vmlinuz-*; } >/dev/null 2>&1 \
	  || { apt-get update -qq && apt-get install -y -qq --no-install-recommends $(MACHINE) >/dev/null; } \
	  || echo "needs: sudo apt-get install $(MACHINE)"
	$(DESK)/bin/python -m pytest -m vm tests/vm

lint:
	$(DESK)/bin/ruff check .
	$(DESK)/bin/ruff format --check .
	$(DESK)/bin/mypy
	$(DESK)/bin/lint-imports --no-cache

$(DEVICE)/.done: pyproject.toml
	$(PYTHON) -m venv $(DEVICE) || { echo "venv is missing: sudo apt-get install python3-venv"; exit 1; }
	$(DEVICE)/bin/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(DESK)/.done: pyproject.toml
	$(PYTHON) -m venv $(DESK) || { echo "venv is missing: sudo apt-get install python3-venv"; exit 1; }
	$(DESK)/bin/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf $(DEVICE) $(DESK) build *.egg-info .mypy_cache .pytest_cache .ruff_cache
