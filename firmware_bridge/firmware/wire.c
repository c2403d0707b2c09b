#include "wire.h"

#include <string.h>

#include "lamps.h"

/* CRC-16/IBM-3740. Bit by bit: a frame's 20 bytes take the panel a tenth of a millisecond. */
static uint16_t checksum(const uint8_t *body, uint8_t length)
{
    uint16_t crc = 0xFFFF;
    for (uint8_t i = 0; i < length; i++) {
        crc ^= (uint16_t)(body[i] << 8);
        for (uint8_t bit = 0; bit < 8; bit++)
            crc = (uint16_t)((crc & 0x8000) ? (crc << 1) ^ 0x1021 : crc << 1);
    }
    return crc;
}

/* Takes the stuffing out, in place; returns the length of what is left, 0 where it was stuffed wrongly. */
static uint8_t unstuff(uint8_t *piece, uint8_t length)
{
    uint8_t at = 0;
    while (at < length) {
        const uint8_t run = piece[at];
        if (run > length - at)
            return 0;
        if (at > 0)
            piece[at - 1] = 0;
        memmove(piece + at, piece + at + 1, (uint8_t)(run - 1));
        at = (uint8_t)(at + run);
    }
    return (uint8_t)(length - 1);
}

/* Whether a payload has its code's length, and every value is one that its sender can mean. */
static bool plausible(const struct wire_frame *frame)
{
    const uint8_t *payload = frame->payload;
    switch (frame->code) {
    case WIRE_ASK:
        return frame->length == 1;
    case WIRE_SHOW:
        return frame->length == 9 && payload[0] <= SHOWN_TEST && payload[7] <= 1;
    case WIRE_GOT:
        return frame->length == 3;
    case WIRE_HELLO:
        return frame->length == 7;
    case WIRE_EVENT:
        return frame->length == 7 && payload[3] >= 1 && payload[3] <= 5 && payload[4] >= 1 && payload[4] <= 3;
    case WIRE_STATUS:
        return frame->length == 16 && payload[7] <= SHOWN_NO_LINK && payload[12] < 1 << 5;
    default:
        return false;
    }
}

static bool decode(uint8_t *piece, uint8_t length, struct wire_frame *found)
{
    const uint8_t size = unstuff(piece, length);
    if (size < 4 || checksum(piece, (uint8_t)(size - 2)) != wire_u16(piece + size - 2))
        return false;
    found->code = piece[0];
    found->sequence = piece[1];
    found->length = (uint8_t)(size - 4);
    memcpy(found->payload, piece + 2, found->length);
    return plausible(found);
}

bool wire_feed(struct wire_reader *reader, uint8_t byte, struct wire_frame *found)
{
    if (byte != 0) {
        if (reader->length == WIRE_LONGEST)
            reader->spoiled = true;
        else
            reader->piece[reader->length++] = byte;
        return false;
    }
    const bool empty = reader->length == 0 && !reader->spoiled;
    const bool good = !empty && !reader->spoiled && decode(reader->piece, reader->length, found);
    if (!empty && !good && reader->refused < UINT16_MAX)
        reader->refused++;
    reader->length = 0;
    reader->spoiled = false;
    return good;
}

void wire_spoil(struct wire_reader *reader)
{
    reader->spoiled = true;
}

uint8_t wire_encode(const struct wire_frame *frame, uint8_t out[WIRE_LONGEST + 1])
{
    uint8_t body[WIRE_LONGEST - 1] = {frame->code, frame->sequence};
    uint8_t length = (uint8_t)(frame->length + 2);
    memcpy(body + 2, frame->payload, frame->length);
    const uint16_t crc = checksum(body, length);
    body[length++] = (uint8_t)crc;
    body[length++] = (uint8_t)(crc >> 8);

    /* A frame is shorter than 254 bytes: the longest run that one stuffed byte can stand for. */
    uint8_t run = 0;
    for (uint8_t i = 0; i < length; i++) {
        out[i + 1] = body[i];
        if (body[i] == 0) {
            out[run] = (uint8_t)(i + 1 - run);
            run = (uint8_t)(i + 1);
        }
    }
    out[run] = (uint8_t)(length + 1 - run);
    out[length + 1] = 0;
    return (uint8_t)(length + 2);
}

uint16_t wire_u16(const uint8_t *at)
{
    return (uint16_t)(at[0] | at[1] << 8);
}

uint32_t wire_u32(const uint8_t *at)
{
    return wire_u16(at) | (uint32_t)wire_u16(at + 2) << 16;
}

void wire_add_u8(struct wire_frame *frame, uint8_t value)
{
    frame->payload[frame->length++] = value;
}

void wire_add_u16(struct wire_frame *frame, uint16_t value)
{
    wire_add_u8(frame, (uint8_t)value);
    wire_add_u8(frame, (uint8_t)(value >> 8));
}

void wire_add_u32(struct wire_frame *frame, uint32_t value)
{
    wire_add_u16(frame, (uint16_t)value);
    wire_add_u16(frame, (uint16_t)(value >> 16));
}
