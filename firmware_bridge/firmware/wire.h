/* The wire between box and panel: frames as PROTOCOL.md describes them. */
#ifndef WIRE_H
#define WIRE_H

#include <stdbool.h>
#include <stdint.h>

enum {
    WIRE_VERSION = 1,
    WIRE_LONGEST = 32,               /* bytes of an encoded frame without its closing zero */
    WIRE_PAYLOAD = WIRE_LONGEST - 5, /* less code, sequence, checksum and the one byte that stuffing adds */
};

enum wire_code {
    WIRE_ASK = 0x01,
    WIRE_SHOW = 0x02,
    WIRE_GOT = 0x03,
    WIRE_HELLO = 0x81,
    WIRE_EVENT = 0x82,
    WIRE_STATUS = 0x83,
};

struct wire_frame {
    uint8_t code;
    uint8_t sequence;
    uint8_t length; /* of the payload */
    uint8_t payload[WIRE_PAYLOAD];
};

/* Cuts a stream of bytes into frames. Begins as all zeros. */
struct wire_reader {
    uint8_t piece[WIRE_LONGEST];
    uint8_t length;
    bool spoiled;     /* too long, or a byte of it is known to be lost or false */
    uint16_t refused; /* pieces that were no frame; stands still at its largest */
};

/* Takes one received byte. True when it completes a frame, which is then in *found. */
bool wire_feed(struct wire_reader *reader, uint8_t byte, struct wire_frame *found);

/* A byte was lost or came false: nothing before the next zero can be a frame. */
void wire_spoil(struct wire_reader *reader);

/* Writes the frame as its bytes on the wire, the closing zero among them; returns how many. */
uint8_t wire_encode(const struct wire_frame *frame, uint8_t out[WIRE_LONGEST + 1]);

/* Numbers in a payload, little-endian. */
uint16_t wire_u16(const uint8_t *at);
uint32_t wire_u32(const uint8_t *at);
void wire_add_u8(struct wire_frame *frame, uint8_t value);
void wire_add_u16(struct wire_frame *frame, uint16_t value);
void wire_add_u32(struct wire_frame *frame, uint32_t value);

#endif
