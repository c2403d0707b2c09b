#include "board.h"

#include <avr/eeprom.h>
#include <avr/interrupt.h>
#include <avr/io.h>
#include <avr/sleep.h>
#include <avr/wdt.h>

#define BAUD 57600
#include <util/setbaud.h>

#include "lamps.h"
#include "wire.h"

/* In the EEPROM; not its first cell, which a failing supply is known to spoil. */
#define BOOTS ((uint16_t *)2)

/* One writer and one reader each, on either side of the interrupt. Indices count modulo 256. */
enum { RING = 64 };
static volatile uint16_t received[RING];
static volatile uint8_t received_in, received_out;
static volatile uint8_t sending[RING];
static volatile uint8_t sending_in, sending_out;
static volatile bool received_lost;
static volatile uint8_t ticks;

static uint8_t reset_cause __attribute__((section(".noinit")));

/* After a watchdog reset the watchdog is still running, with its shortest time (data sheet, section 10.9.2):
   it must be stopped before memory is cleared, and cannot be while MCUSR says that it has struck. GPIOR0 is 0
   after a reset, unless a boot loader keeps MCUSR there. */
void before_main(void) __attribute__((naked, used, section(".init3")));
void before_main(void)
{
    reset_cause = MCUSR | GPIOR0;
    MCUSR = 0;
    GPIOR0 = 0;
    wdt_disable();
}

/* An old boot loader does not know of that watchdog and is struck down by it again and again, until somebody
   cuts the power. So the first time-out does not reset: dark, the program begins anew without the boot loader.
   A second, where interrupts are off, resets. */
ISR(WDT_vect)
{
    PORTB = 0;
    PORTD = 0;
    DDRB = 0;
    DDRD = 0;
    wdt_disable();
    GPIOR0 = _BV(WDRF);
    __asm__ volatile("jmp 0");
}

static void start_pins(void)
{
    PORTD = 0x7C; /* pull-ups of the buttons, PD2 to PD6 */
    DDRD = _BV(PD7);
    PORTB = _BV(PB4); /* pull-up of the mute switch */
    DDRB = _BV(PB0) | _BV(PB1) | _BV(PB2) | _BV(PB3) | _BV(PB5);
}

static void start_timers(void)
{
    /* Timer 0: an interrupt each millisecond, 16 MHz / 64 / 250. */
    TCCR0A = _BV(WGM01);
    TCCR0B = _BV(CS01) | _BV(CS00);
    OCR0A = 249;
    TIMSK0 = _BV(OCIE0A);

    /* Timer 1: brightness on OC1A, 8-bit fast PWM at 977 Hz. */
    TCCR1A = _BV(COM1A1) | _BV(WGM10);
    TCCR1B = _BV(WGM12) | _BV(CS11) | _BV(CS10);

    /* Timer 2: a tone on OC2A, toggled at each compare; 16 MHz / 128, begun by board_show. */
    TCCR2A = _BV(WGM21);
    TCCR2B = _BV(CS22) | _BV(CS20);
}

static void start_converter(void)
{
    DIDR0 = _BV(ADC0D) | _BV(ADC1D);
    ADMUX = _BV(REFS0);
    ADCSRA = _BV(ADEN) | _BV(ADSC) | _BV(ADPS2) | _BV(ADPS1) | _BV(ADPS0); /* 125 kHz */
}

static void start_serial(void)
{
    UCSR0A = USE_2X ? _BV(U2X0) : 0;
    UCSR0C = _BV(UCSZ01) | _BV(UCSZ00);
    UBRR0 = UBRR_VALUE;
    UCSR0B = _BV(RXEN0) | _BV(TXEN0) | _BV(RXCIE0);
}

void board_start(void)
{
    start_pins();
    start_timers();
    start_converter();
    start_serial();
    set_sleep_mode(SLEEP_MODE_IDLE);
    wdt_enable(WDTO_120MS);
    WDTCSR |= _BV(WDIE);
    sei();
}

uint8_t board_reset_cause(void)
{
    return reset_cause;
}

uint16_t board_count_boot(void)
{
    const uint16_t boot = (uint16_t)(eeprom_read_word(BOOTS) + 1);
    eeprom_update_word(BOOTS, boot);
    return boot;
}

ISR(TIMER0_COMPA_vect)
{
    ticks++;
}

static void keep(uint16_t what)
{
    received_lost = (uint8_t)(received_in - received_out) == RING;
    if (!received_lost)
        received[received_in++ % RING] = what;
}

ISR(USART_RX_vect)
{
    const uint8_t status = UCSR0A; /* goes with the byte that UDR0 will give */
    const uint8_t byte = UDR0;
    if (received_lost || status & (_BV(DOR0) | _BV(FE0)))
        keep(BOARD_DAMAGE);
    if (!(status & _BV(FE0)))
        keep(byte);
}

ISR(USART_UDRE_vect)
{
    if (sending_in == sending_out)
        UCSR0B &= (uint8_t)~_BV(UDRIE0);
    else
        UDR0 = sending[sending_out++ % RING];
}

int16_t board_receive(void)
{
    if (received_in == received_out)
        return BOARD_NOTHING;
    const uint16_t what = received[received_out % RING];
    received_out++; /* only now may the interrupt write there */
    return (int16_t)what;
}

bool board_tick(void)
{
    cli();
    const bool passed = ticks > 0;
    if (passed)
        ticks--;
    sei();
    return passed;
}

bool board_can_send(void)
{
    return RING - (uint8_t)(sending_in - sending_out) > WIRE_LONGEST;
}

void board_send(const uint8_t *bytes, uint8_t length)
{
    for (uint8_t i = 0; i < length; i++) {
        sending[sending_in % RING] = bytes[i];
        sending_in++;
    }
    cli();
    UCSR0B |= _BV(UDRIE0);
    sei();
}

uint8_t board_buttons(void)
{
    return (uint8_t)(~PIND >> PD2) & 0x1F;
}

bool board_muted(void)
{
    return !(PINB & _BV(PB4));
}

uint16_t board_sample(enum channel next)
{
    const uint16_t sample = ADC;
    ADMUX = next == CHANNEL_DIAL ? _BV(REFS0) : _BV(REFS1) | _BV(REFS0) | _BV(MUX0);
    ADCSRA |= _BV(ADSC);
    return sample;
}

static void set(volatile uint8_t *port, uint8_t bit, bool high)
{
    if (high)
        *port |= bit;
    else
        *port &= (uint8_t)~bit;
}

static void sound(uint16_t tone)
{
    if (tone == 0) {
        TCCR2A = _BV(WGM21);
        return;
    }
    OCR2A = (uint8_t)(F_CPU / 2 / 128 / tone - 1);
    TCCR2A = _BV(COM2A0) | _BV(WGM21);
}

void board_show(uint8_t lit, uint8_t brightness, uint16_t tone, bool linked)
{
    static uint8_t bright; /* as last set: only what changes is set again */
    static uint16_t sounding;
    set(&PORTD, _BV(PD7), lit & LAMP_NORMAL);
    set(&PORTB, _BV(PB0), lit & LAMP_OPACITY);
    set(&PORTB, _BV(PB2), lit & LAMP_NO_READING);
    set(&PORTB, _BV(PB5), linked);
    if (brightness != bright)
        OCR1A = brightness;
    if (tone != sounding)
        sound(tone);
    bright = brightness;
    sounding = tone;
}

void board_alive(void)
{
    wdt_reset();
}

void board_sleep(void)
{
    cli();
    if (ticks == 0 && received_in == received_out) {
        sleep_enable();
        sei(); /* takes effect after the next instruction: no interrupt is slept through */
        sleep_cpu();
        sleep_disable();
    }
    sei();
}
