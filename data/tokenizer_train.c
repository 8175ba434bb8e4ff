// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizer.h"
#ifdef FLOE_SENTENCEPIECE
#include "core/log.h"
#include "core/rng.h"
#include "data/output_file.h"
#include "data/sentencepiece.h"
#include "data/text_files.h"
#include <stdlib.h>
#include <string.h>

// Training reads at most SAMPLE_BYTES of text, lines drawn evenly; longer lines are cut.
enum { SAMPLE_BYTES = 256 << 20, LINE_BYTES = 16384, LEAST_VOCAB = 4 + 256 + 1 };

typedef struct {
    PieceLine *line;
    char **text; // chunks that lines point into
    int64_t lines, capacity, seen, bytes;
    int texts;
    double share; // of lines that are taken
} Sample;

static void keep_text(Sample *sample, char *text) {
    sample->text = realloc(sample->text, (size_t)(sample->texts + 1) * sizeof *sample->text);
    REQUIRE(sample->text, "out of memory");
    sample->text[sample->texts++] = text;
}

static void add_line(Sample *sample, const char *line, int64_t bytes) {
    if (bytes == 0 || rng_uniform(0, 0, (uint64_t)sample->seen++) >= sample->share) return;
    if (sample->bytes + bytes > 2 * (int64_t)SAMPLE_BYTES)
        return; // compressed input that grows beyond the estimate
    if (sample->lines == sample->capacity) {
        sample->capacity = sample->capacity ? 2 * sample->capacity : 4096;
        sample->line = realloc(sample->line, (size_t)sample->capacity * sizeof *sample->line);
        REQUIRE(sample->line, "out of memory for %lld lines", (long long)sample->capacity);
    }
    sample->line[sample->lines++] = (PieceLine){line, bytes};
    sample->bytes += bytes;
}

static void add_text(Sample *sample, const char *text, int64_t bytes) {
    const TextChunk whole = {.text = (char *)(uintptr_t)text, .bytes = bytes};
    const char *line;
    int64_t at = 0, length;
    while (text_next_line(&whole, &at, &line, &length)) {
        for (; length > LINE_BYTES; line += LINE_BYTES, length -= LINE_BYTES)
            add_line(sample, line, LINE_BYTES);
        add_line(sample, line, length);
    }
}

static Status add_records(Sample *sample, const TextChunk *chunk) {
    const char *line, *text;
    int64_t at = 0, bytes, text_bytes;
    for (int64_t number = chunk->first_line; text_next_line(chunk, &at, &line, &bytes); number++) {
        json_t *document;
        TRY(text_of_json(line, bytes, chunk->path, number, &document, &text, &text_bytes));
        if (!document) continue;
        char *copy = malloc((size_t)text_bytes + 1);
        REQUIRE(copy, "out of memory");
        memcpy(copy, text, (size_t)text_bytes);
        json_decref(document);
        keep_text(sample, copy);
        add_text(sample, copy, text_bytes);
    }
    return OK;
}

static Status gather(Sample *sample, TextReader *reader) {
    double total = (double)text_reader_bytes(reader);
    sample->share = total > SAMPLE_BYTES ? SAMPLE_BYTES / total : 1;
    for (;;) {
        TextChunk chunk;
        bool more;
        TRY(text_reader_next(reader, &chunk, &more));
        if (!more) break;
        keep_text(sample, chunk.text);
        if (chunk.jsonl)
            TRY(add_records(sample, &chunk));
        else
            add_text(sample, chunk.text, chunk.bytes);
    }
    if (sample->lines == 0) FAIL(ERR_DATA, "the inputs hold no text to train a tokenizer on");
    if (sample->share < 1)
        log_rank0(LOG_INFO, "training on %lld of %lld lines", (long long)sample->lines,
                  (long long)sample->seen);
    return OK;
}

static Status train_on(const Sample *sample, const char *path, int vocab) {
    char *model;
    int64_t bytes;
    char *problem = piece_model_train(sample->line, sample->lines, vocab, &model, &bytes);
    if (problem) {
        Status status =
            status_fail(ERR_CONFIG, __FILE__, __LINE__,
                        "SentencePiece cannot train %d pieces on %lld bytes of text: %s; change --vocab or "
                        "give it more text",
                        vocab, (long long)sample->bytes, problem);
        free(problem);
        return status;
    }
    OutputFile file;
    Status status = output_open(&file, path);
    if (status == OK) status = output_write(&file, model, bytes);
    if (status == OK) status = output_commit(&file);
    output_cancel(&file);
    free(model);
    return status;
}

Status tokenizer_train(const char *const input[], int inputs, const char *path, int vocab) {
    if (vocab < LEAST_VOCAB)
        FAIL(ERR_CONFIG, "--vocab %d is too small: 4 special pieces and 256 bytes come first", vocab);
    TextReader *reader;
    Sample sample = {0};
    TRY(text_reader_create(&reader, input, inputs));
    Status status = gather(&sample, reader);
    if (status == OK) status = train_on(&sample, path, vocab);
    text_reader_destroy(reader);
    for (int i = 0; i < sample.texts; i++) free(sample.text[i]);
    free(sample.text);
    free(sample.line);
    return status;
}

#else

Status tokenizer_train(const char *const input[], int inputs, const char *path, int vocab) {
    (void)input, (void)inputs, (void)vocab;
    FAIL(ERR_CONFIG, "%s: this build has no SentencePiece; install libsentencepiece-dev and build again",
         path);
}
#endif
