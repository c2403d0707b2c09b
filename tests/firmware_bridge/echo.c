/* A firmware that sends back what it gets, for tests of the simulator itself. D7 follows the button at D2, D9
   is half bright, D11 sounds while D3 is down. Bytes that are commands while D4 is down: 'c' answers with MCUSR
   at the start, 'b' with the starts counted in the EEPROM, 'r' with the starts counted in RAM since power came,
   'a' with A0 and A1 in two bytes each, 'f' with 0 to 249; 'h' answers itself and hangs, interrupts off. */
#include <avr/eeprom.h>
#include <avr/interrupt.h>
#include <avr/io.h>
#include <avr/sleep.h>
#include <avr/wdt.h>

static volatile uint8_t ring[256];
static volatile uint8_t first, end;
static uint8_t cause;
static struct {
    uint32_t valid;
    uint8_t starts;
} kept __attribute__((section(".noinit")));

static void send(uint8_t byte) {
    ring[end] = byte;
    end++;
    UCSR0B |= _BV(UDRIE0);
}

static uint16_t measure(uint8_t source) {
    ADMUX = source;
    ADCSRA = _BV(ADEN) | _BV(ADSC) | 7;
    loop_until_bit_is_clear(ADCSRA, ADSC);
    return ADC;
}

static void command(uint8_t byte) {
    if (byte == 'c')
        send(cause);
    if (byte == 'b')
        send(eeprom_read_byte(0));
    if (byte == 'r')
        send(kept.starts);
    if (byte == 'a') {
        uint16_t values[] = {measure(_BV(REFS0)), measure(_BV(REFS1) | _BV(REFS0) | 1)};
        for (uint8_t i = 0; i < 4; i++)
            send(((uint8_t *)values)[i]);
    }
    if (byte == 'f')
        for (uint8_t i = 0; i < 250; i++)
            send(i);
    if (byte == 'h')
        for (UDR0 = byte;;)
            ;
}

ISR(USART_RX_vect) {
    uint8_t byte = UDR0;
    if (PIND & _BV(4))
        send(byte);
    else
        command(byte);
}

ISR(USART_UDRE_vect) {
    if (first == end)
        UCSR0B &= ~_BV(UDRIE0);
    else
        UDR0 = ring[first++];
}

ISR(TIMER0_COMPA_vect) {
    wdt_reset();
    if (PIND & _BV(2))
        PORTD &= ~_BV(7);
    else
        PORTD |= _BV(7);
    TCCR2B = PIND & _BV(3) ? 0 : _BV(CS22);
}

int main(void) {
    cause = MCUSR;
    MCUSR = 0;
    wdt_enable(WDTO_250MS);
    kept.starts = kept.valid == 0x12345678 ? kept.starts + 1 : 1;
    kept.valid = 0x12345678;
    eeprom_write_byte(0, eeprom_read_byte(0) + 1);
    DDRD = _BV(7);
    PORTD = _BV(2) | _BV(3) | _BV(4);
    DDRB = _BV(1) | _BV(3);
    TCCR1A = _BV(COM1A1) | _BV(WGM10);
    TCCR1B = _BV(WGM12) | _BV(CS10);
    OCR1A = 128;
    TCCR2A = _BV(COM2A0) | _BV(WGM21);
    OCR2A = 62;
    TCCR0A = _BV(WGM01);
    TCCR0B = _BV(CS01) | _BV(CS00);
    OCR0A = 249;
    TIMSK0 = _BV(OCIE0A);
    UCSR0A = _BV(U2X0);
    UBRR0 = 34;
    UCSR0B = _BV(RXEN0) | _BV(TXEN0) | _BV(RXCIE0);
    sei();
    for (;;)
        sleep_mode();
}
