/* libFuzzer: any bytes through the decoder, and any frame through encoder and decoder. */
#include <stdlib.h>
#include <string.h>

#include "wire.h"

static void demand(bool condition)
{
    if (!condition)
        abort();
}

/* What is accepted must be what its sender would have written, to the last byte. */
static void any_bytes(const uint8_t *data, size_t size)
{
    struct wire_reader reader = {0};
    struct wire_frame found;
    size_t begin = 0;
    for (size_t i = 0; i < size; i++) {
        const uint16_t refused = reader.refused;
        if (wire_feed(&reader, data[i], &found)) {
            uint8_t bytes[WIRE_LONGEST + 1];
            const uint8_t length = wire_encode(&found, bytes);
            demand(length == i + 1 - begin && memcmp(bytes, data + begin, length) == 0);
        } else if (data[i] == 0 && i > begin) {
            demand(reader.refused == refused + 1 || refused == UINT16_MAX);
        } else {
            demand(reader.refused == refused);
        }
        if (data[i] == 0)
            begin = i + 1;
    }
}

/* A frame that comes after anything and a zero arrives as it was sent, or, if it means nothing, not at all. */
static void any_frame(const uint8_t *data, size_t size)
{
    static const uint8_t LENGTHS[256] = {
        [WIRE_ASK] = 1, [WIRE_SHOW] = 9, [WIRE_GOT] = 3, [WIRE_HELLO] = 7, [WIRE_EVENT] = 7, [WIRE_STATUS] = 16,
    };
    struct wire_frame sent = {.code = data[0], .sequence = data[1]};
    sent.length = (uint8_t)(size - 2 < WIRE_PAYLOAD ? size - 2 : WIRE_PAYLOAD);
    memcpy(sent.payload, data + 2, sent.length);
    uint8_t bytes[WIRE_LONGEST + 1];
    const uint8_t length = wire_encode(&sent, bytes);
    demand(length == sent.length + 6 && memchr(bytes, 0, length) == bytes + length - 1);

    struct wire_reader reader = {0};
    struct wire_frame found;
    for (size_t i = 0; i < size; i++)
        wire_feed(&reader, data[i], &found);
    wire_feed(&reader, 0, &found);
    bool arrived = false;
    for (uint8_t i = 0; i < length; i++)
        arrived = wire_feed(&reader, bytes[i], &found);
    if (!arrived) {
        const bool known = LENGTHS[sent.code] > 0 && LENGTHS[sent.code] == sent.length;
        demand(!known || sent.code == WIRE_SHOW || sent.code == WIRE_EVENT || sent.code == WIRE_STATUS);
        return;
    }
    demand(found.code == sent.code && found.sequence == sent.sequence && found.length == sent.length);
    demand(LENGTHS[found.code] == found.length && memcmp(found.payload, sent.payload, sent.length) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    any_bytes(data, size);
    if (size >= 2)
        any_frame(data, size);
    return 0;
}
