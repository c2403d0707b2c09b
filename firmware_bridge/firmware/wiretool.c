/* Reads raw bytes and writes a line for every frame in them: code, sequence and payload in hexadecimal; and
   in the end how many pieces were refused. So that both sides' decoders can be compared. */
#include <stdio.h>

#include "wire.h"

int main(void)
{
    struct wire_reader reader = {0};
    struct wire_frame frame;
    unsigned long refused = 0;
    for (int byte = getchar(); byte != EOF; byte = getchar()) {
        const bool found = wire_feed(&reader, (uint8_t)byte, &frame);
        refused += reader.refused; /* whose own 16 bits would not do for millions */
        reader.refused = 0;
        if (!found)
            continue;
        printf("%02x%02x", frame.code, frame.sequence);
        for (uint8_t i = 0; i < frame.length; i++)
            printf("%02x", frame.payload[i]);
        putchar('\n');
    }
    printf("refused %lu\n", refused);
    return 0;
}
