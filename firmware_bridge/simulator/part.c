#include "part.h"

#include <simavr/avr_adc.h>
#include <simavr/avr_ioport.h>
#include <simavr/avr_timer.h>
#include <simavr/avr_uart.h>
#include <simavr/avr_watchdog.h>
#include <simavr/sim_avr.h>
#include <simavr/sim_elf.h>
#include <simavr/sim_hex.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Addresses in the data space (datasheet, register summary). */
enum {
    DDRB = 0x24,
    TCCR1A = 0x80,
    TCCR2A = 0xB0,
    TCCR2B = 0xB1,
    UCSR0A = 0xC0,
    UCSR0B = 0xC1,
    UBRR0L = 0xC4,
    UBRR0H = 0xC5,
    RAM_START = 0x100,
    NOWHERE = 0xFFFFFF,
};
enum { U2X0 = 1, RXEN0 = 4, COMA = 6, CLOCK_SELECT = 7 };
enum { D9_OC1A = 9, D11_OC2A = 11 };

static struct port {
    char name;
    uint16_t pin; /* DDR and PORT follow it */
    int pins;
    int first; /* Arduino's number of bit 0 */
    uint8_t grounded;
} ports[] = {
    {.name = 'D', .pin = 0x29, .pins = 8, .first = 0},
    {.name = 'B', .pin = 0x23, .pins = 6, .first = 8},
};

static avr_t *avr;
static avr_uart_t *uart;
static avr_watchdog_t *watchdog;
static struct part_hooks hooks;
static void (*core_reset)(avr_t *);
static bool powered, was_reset;
static uint16_t levels;
static uint64_t seen_ports;
static uint16_t seen_timer;
static uint8_t received[2];
static int held;
static struct {
    avr_flashaddr_t pc;
    uint16_t stack;
} loop; /* where the program hangs */

static void log_errors(avr_t *part, const int level, const char *format, va_list arguments) {
    (void)part;
    if (level == LOG_ERROR)
        vfprintf(stderr, format, arguments);
}

/* simavr would sleep here; whoever calls part_run_until keeps time instead. */
static void sleep_without_waiting(avr_t *part, avr_cycle_count_t cycles) {
    (void)part;
    (void)cycles;
}

static void note_reset(avr_t *part) {
    core_reset(part);
    was_reset = true;
}

/* Start bit, eight data bits, stop bit. */
static uint64_t cycles_per_byte(void) {
    return 10 * CYCLES_PER_SECOND / part_baud();
}

static void byte_written(struct avr_irq_t *irq, uint32_t value, void *unused) {
    (void)irq;
    (void)unused;
    /* simavr 1.6 always counts a parity bit; it asks for this after the hook. */
    uart->cycles_per_byte = cycles_per_byte();
    hooks.sent((uint8_t)value, part_baud());
}

/* simavr's receiver takes 64 bytes and gives each only a byte's time after it was asked for: it gets one at a
   time, at once. */
static void hand_over(void) {
    if (held == 0 || uart->input.read != uart->input.write)
        return;
    uint8_t byte = received[0];
    received[0] = received[1];
    held--;
    uart->cycles_per_byte = 1;
    avr_raise_irq(avr_io_getirq(avr, AVR_IOCTL_UART_GETIRQ('0'), UART_IRQ_INPUT), byte);
    uart->cycles_per_byte = cycles_per_byte();
}

static void receiver_empty(struct avr_irq_t *irq, uint32_t value, void *unused) {
    (void)irq;
    (void)value;
    (void)unused;
    hand_over();
}

/* An interrupt of the watchdog that is not served until its next time-out becomes a reset (datasheet 10.9.2).
   simavr would let it wait for ever. */
static avr_cycle_count_t not_served(avr_t *part, avr_cycle_count_t when, void *unused) {
    (void)when;
    (void)unused;
    if (avr_is_interrupt_pending(part, &watchdog->watchdog))
        avr_regbit_clear(part, watchdog->watchdog.enable);
    return 0;
}

static void watchdog_struck(struct avr_irq_t *irq, uint32_t pending, void *unused) {
    (void)irq;
    (void)unused;
    if (pending)
        avr_cycle_timer_register(avr, watchdog->cycle_count - 1, not_served, NULL);
}

static bool ends_with(const char *name, const char *ending) {
    size_t length = strlen(name), end = strlen(ending);
    return length >= end && strcmp(name + length - end, ending) == 0;
}

static bool write_flash(uint8_t *code, uint32_t size, uint32_t address) {
    if (size == 0 || size > avr->flashend + 1 || address > avr->flashend + 1 - size) {
        fprintf(stderr, "the firmware does not fit into the flash\n");
        return false;
    }
    avr_loadcode(avr, code, size, address);
    return true;
}

static bool load_hex(const char *file) {
    ihex_chunk_p chunks = NULL;
    int found = read_ihex_chunks(file, &chunks);
    if (found <= 0)
        return false;
    avr->reset_pc = chunks[0].baseaddr;
    bool fits = true;
    for (int i = 0; i < found && fits; i++) {
        fits = write_flash(chunks[i].data, chunks[i].size, chunks[i].baseaddr);
        if (chunks[i].baseaddr < avr->reset_pc)
            avr->reset_pc = chunks[i].baseaddr;
    }
    free_ihex_chunks(chunks);
    return fits;
}

static bool load_elf(const char *file) {
    elf_firmware_t firmware = {.flash = NULL};
    return elf_read_firmware(file, &firmware) == 0 &&
           write_flash(firmware.flash, firmware.flashsize, firmware.flashbase);
}

bool part_load(const char *firmware, struct part_hooks asked) {
    hooks = asked;
    avr_global_logger_set(log_errors);
    avr = avr_make_mcu_by_name("atmega328p");
    if (avr == NULL)
        return false;
    avr_init(avr);
    avr->frequency = CYCLES_PER_SECOND;
    avr->vcc = avr->avcc = avr->aref = 5000;
    avr->sleep = sleep_without_waiting;
    core_reset = avr->reset;
    avr->reset = note_reset;
    for (avr_io_t *io = avr->io_port; io != NULL; io = io->next) {
        if (strcmp(io->kind, "uart") == 0)
            uart = (avr_uart_t *)io;
        if (strcmp(io->kind, "watchdog") == 0)
            watchdog = (avr_watchdog_t *)io;
    }
    avr_irq_register_notify(watchdog->watchdog.irq + AVR_INT_IRQ_PENDING, watchdog_struck, NULL);
    uint32_t no_tricks = 0; /* no sleeping while the program polls, no text output */
    avr_ioctl(avr, AVR_IOCTL_UART_SET_FLAGS('0'), &no_tricks);
    avr_irq_t *irq = avr_io_getirq(avr, AVR_IOCTL_UART_GETIRQ('0'), 0);
    avr_irq_register_notify(irq + UART_IRQ_OUTPUT, byte_written, NULL);
    avr_irq_register_notify(irq + UART_IRQ_OUT_XON, receiver_empty, NULL);
    return ends_with(firmware, ".hex") ? load_hex(firmware) : load_elf(firmware);
}

static void report(uint16_t now) {
    uint16_t changed = levels ^ now;
    levels = now;
    for (int pin = 0; pin < PINS; pin++)
        if (changed >> pin & 1)
            hooks.pin(pin, part_level(pin), avr->cycle);
}

static bool driven_by_timer(int pin) {
    if (pin == D9_OC1A)
        return avr->data[TCCR1A] >> COMA;
    if (pin == D11_OC2A)
        return avr->data[TCCR2A] >> COMA && avr->data[TCCR2B] & CLOCK_SELECT;
    return false;
}

/* Brings the inputs to what they are tied to, or their pull-ups make them. simavr forgets that at a reset,
   and lets every write to a port undo it. */
static uint16_t settle(struct port *port) {
    uint8_t direction = avr->data[port->pin + 1], latch = avr->data[port->pin + 2];
    uint8_t inputs = latch & ~direction & ~port->grounded;
    uint8_t wrong = (avr->data[port->pin] ^ inputs) & ~direction;
    uint16_t now = 0;
    for (int bit = 0; bit < port->pins; bit++) {
        bool level = (inputs | (latch & direction)) >> bit & 1;
        if (wrong >> bit & 1) {
            avr_irq_t *irq = avr_io_getirq(avr, AVR_IOCTL_IOPORT_GETIRQ(port->name), bit);
            irq->value = !level; /* else it takes it for known */
            avr_raise_irq(irq, level);
        }
        if (direction >> bit & 1 && driven_by_timer(port->first + bit))
            level = true;
        now |= (uint16_t)(level << (port->first + bit));
    }
    return now;
}

/* DDRB to PORTD: eight bytes in a row. */
static uint64_t port_registers(void) {
    uint64_t registers;
    memcpy(&registers, avr->data + DDRB, sizeof registers);
    return registers;
}

static uint16_t timer_registers(void) {
    return (uint16_t)(avr->data[TCCR1A] >> COMA | (avr->data[TCCR2A] >> COMA) << 2 |
                      (avr->data[TCCR2B] & CLOCK_SELECT) << 4);
}

static void look_at_pins(void) {
    report(settle(&ports[0]) | settle(&ports[1]));
    seen_ports = port_registers();
    seen_timer = timer_registers();
}

static void run_hung(avr_t *part) {
    part->cycle += 1 + avr_cycle_timer_process(part);
}

static uint16_t stack_pointer(void) {
    return (uint16_t)(avr->data[R_SPL] | avr->data[R_SPH] << 8);
}

/* Stands where interrupts were first on, but for what they do, until the program begins anew. */
static void run_looping(avr_t *part) {
    if (loop.pc == NOWHERE && part->sreg[S_I]) {
        loop.pc = part->pc;
        loop.stack = stack_pointer();
        part->state = cpu_Running;
    }
    if (part->pc == 0)
        part->run = avr_callback_run_raw;
    if (part->pc != loop.pc || stack_pointer() != loop.stack) {
        avr_callback_run_raw(part);
        return;
    }
    run_hung(part);
    avr_service_interrupts(part);
}

/* simavr writes what a timer puts out into the port's latch, where the program would find it afterwards. */
static void cut_off_timer(char timer, int pin) {
    avr_irq_t *output = avr_io_getirq(avr, AVR_IOCTL_TIMER_GETIRQ(timer), TIMER_IRQ_OUT_COMP);
    avr_unconnect_irq(output, avr_io_getirq(avr, AVR_IOCTL_IOPORT_GETIRQ('B'), pin - 8));
}

static void after_reset(void) {
    was_reset = false;
    cut_off_timer('1', D9_OC1A);
    cut_off_timer('2', D11_OC2A);
    avr->run = avr_callback_run_raw;
    held = 0;
    look_at_pins();
}

void part_power_on(uint64_t cycle) {
    avr->cycle = cycle;
    powered = true;
    for (int address = RAM_START; address <= avr->ramend; address++)
        avr->data[address] = (uint8_t)rand();
    avr_reset(avr);
    avr_regbit_set(avr, avr->reset_flags.porf);
    after_reset();
}

void part_power_off(uint64_t cycle) {
    avr->cycle = cycle;
    powered = false;
    report(0);
}

void part_reset(void) {
    avr_reset(avr);
    avr_regbit_set(avr, avr->reset_flags.extrf);
    after_reset();
}

void part_hang(bool interrupts) {
    loop.pc = NOWHERE;
    avr->run = interrupts ? run_looping : run_hung;
}

uint64_t part_cycle(void) {
    return avr->cycle;
}

static avr_cycle_count_t stop(avr_t *part, avr_cycle_count_t when, void *unused) {
    (void)part;
    (void)when;
    (void)unused;
    return 0;
}

void part_run_until(uint64_t cycle) {
    if (avr->cycle >= cycle)
        return;
    avr_cycle_timer_register(avr, cycle - avr->cycle, stop, NULL); /* sleep ends here */
    while (avr->cycle < cycle) {
        avr_run(avr);
        if (avr->state == cpu_Done || avr->state == cpu_Crashed) {
            const char *how = avr->state == cpu_Done ? "sleeps for ever" : "crashed";
            fprintf(stderr, "the firmware %s at %#x\n", how, avr->pc);
            avr->state = cpu_Running;
            part_hang(false);
        }
        if (was_reset)
            after_reset();
        if (port_registers() != seen_ports || timer_registers() != seen_timer)
            look_at_pins();
    }
}

uint32_t part_baud(void) {
    uint32_t divider = (uint32_t)(avr->data[UBRR0L] | (avr->data[UBRR0H] & 0x0F) << 8) + 1;
    return (uint32_t)CYCLES_PER_SECOND / (divider * (avr->data[UCSR0A] >> U2X0 & 1 ? 8 : 16));
}

bool part_receive(uint8_t byte) {
    if (!(avr->data[UCSR0B] >> RXEN0 & 1))
        return true; /* nobody listens: not lost, never wanted */
    if (held == 2)
        return false;
    received[held++] = byte;
    hand_over();
    return true;
}

static struct port *port_of(int pin) {
    return pin < ports[1].first ? &ports[0] : &ports[1];
}

void part_ground(int pin, bool grounded) {
    struct port *port = port_of(pin);
    uint8_t bit = (uint8_t)(1 << (pin - port->first));
    port->grounded = grounded ? port->grounded | bit : port->grounded & ~bit;
    avr_ioport_external_t tied = {.name = port->name, .mask = port->grounded, .value = 0};
    avr_ioctl(avr, AVR_IOCTL_IOPORT_SET_EXTERNAL(port->name), &tied);
    if (powered)
        look_at_pins();
}

bool part_level(int pin) {
    return levels >> pin & 1;
}

void part_analog(int channel, uint32_t millivolts) {
    avr_raise_irq(avr_io_getirq(avr, AVR_IOCTL_ADC_GETIRQ, channel), millivolts);
}

uint8_t part_peek(uint16_t address) {
    return address <= avr->ramend ? avr->data[address] : 0;
}
