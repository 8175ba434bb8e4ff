// SPDX-License-Identifier: Apache-2.0
// One thread reads chunks of text and writes tokens, both in input order; the others tokenise in between. A
// ring of jobs bounds the memory.
#include "data/pack.h"
#include "data/shard.h"
#include "data/text_files.h"
#include "data/tokenizer.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { JOBS_PER_THREAD = 4 };

typedef struct {
    TextChunk chunk;
    bool done;
    Status status;
    char *problem; // status_text of the thread that met it
    int32_t *tokens;
    int64_t count, capacity;
    int64_t *end; // [documents]: tokens up to the end of each
    int64_t documents, document_capacity;
} Job;

typedef struct {
    const Tokenizer *tokenizer;
    pthread_mutex_t mutex;
    pthread_cond_t more_work, more_done;
    Job *ring;
    int slots;
    int64_t submitted, taken, written;
    bool closed;
    ShardWriter *writer;
    PackReport *report;
} Packer;

static void *grown(void *memory, int64_t *capacity, int64_t need, size_t width) {
    if (need <= *capacity) return memory;
    *capacity = need > 2 * *capacity ? need : 2 * *capacity;
    memory = realloc(memory, (size_t)*capacity * width);
    REQUIRE(memory, "out of memory for %lld tokens", (long long)*capacity);
    return memory;
}

static Status add_document(const Tokenizer *tokenizer, Job *job, const char *text, int64_t bytes) {
    int32_t *tokens;
    int64_t count;
    TRY(tokenizer_encode(tokenizer, text, bytes, &tokens, &count));
    job->tokens = grown(job->tokens, &job->capacity, job->count + count + 1, sizeof *job->tokens);
    memcpy(job->tokens + job->count, tokens, (size_t)count * sizeof *tokens);
    free(tokens);
    job->count += count;
    job->tokens[job->count++] = tokenizer_eos(tokenizer);
    job->end = grown(job->end, &job->document_capacity, job->documents + 1, sizeof *job->end);
    job->end[job->documents++] = job->count;
    return OK;
}

static Status add_lines(const Tokenizer *tokenizer, Job *job) {
    const TextChunk *chunk = &job->chunk;
    const char *line, *text;
    int64_t at = 0, bytes, text_bytes;
    for (int64_t number = chunk->first_line; text_next_line(chunk, &at, &line, &bytes); number++) {
        json_t *document;
        TRY(text_of_json(line, bytes, chunk->path, number, &document, &text, &text_bytes));
        if (!document) continue;
        Status status = text_bytes > 0 ? add_document(tokenizer, job, text, text_bytes) : OK;
        json_decref(document);
        TRY(status);
    }
    return OK;
}

static void job_run(const Tokenizer *tokenizer, Job *job) {
    const TextChunk *chunk = &job->chunk;
    job->status =
        chunk->jsonl ? add_lines(tokenizer, job) : add_document(tokenizer, job, chunk->text, chunk->bytes);
    if (job->status != OK) job->problem = strdup(status_text());
    free(job->chunk.text);
    job->chunk.text = NULL;
}

static void *work(void *argument) {
    Packer *packer = argument;
    pthread_mutex_lock(&packer->mutex);
    for (;;) {
        while (packer->taken == packer->submitted && !packer->closed)
            pthread_cond_wait(&packer->more_work, &packer->mutex);
        if (packer->taken == packer->submitted) break;
        Job *job = &packer->ring[packer->taken++ % packer->slots];
        pthread_mutex_unlock(&packer->mutex);
        job_run(packer->tokenizer, job);
        pthread_mutex_lock(&packer->mutex);
        job->done = true;
        pthread_cond_signal(&packer->more_done);
    }
    pthread_mutex_unlock(&packer->mutex);
    return NULL;
}

static void job_free(Job *job) {
    free(job->chunk.text);
    free(job->problem);
    free(job->tokens);
    free(job->end);
    *job = (Job){0};
}

// Waits for the oldest job and writes its documents.
static Status write_oldest(Packer *packer) {
    Job *job = &packer->ring[packer->written % packer->slots];
    pthread_mutex_lock(&packer->mutex);
    while (!job->done) pthread_cond_wait(&packer->more_done, &packer->mutex);
    packer->written++;
    pthread_mutex_unlock(&packer->mutex);
    Status status = job->status;
    if (status != OK) status_fail(status, __FILE__, __LINE__, "%s", job->problem);
    for (int64_t i = 0; i < job->documents && status == OK; i++) {
        int64_t first = i > 0 ? job->end[i - 1] : 0;
        status = shard_writer_add(packer->writer, job->tokens + first, job->end[i] - first);
    }
    packer->report->documents += job->documents;
    packer->report->tokens += job->count;
    job_free(job);
    return status;
}

static Status submit(Packer *packer, const TextChunk *chunk) {
    if (packer->submitted - packer->written == packer->slots) {
        Status status = write_oldest(packer);
        if (status != OK) free(chunk->text);
        TRY(status);
    }
    pthread_mutex_lock(&packer->mutex);
    packer->ring[packer->submitted++ % packer->slots].chunk = *chunk;
    pthread_cond_signal(&packer->more_work);
    pthread_mutex_unlock(&packer->mutex);
    return OK;
}

static Status feed(Packer *packer, const PackOptions *options, TextReader *reader) {
    TextChunk chunk;
    bool more;
    for (;;) {
        if (options->stop && *options->stop) FAIL(ERR_RUNTIME, "interrupted; nothing was written");
        TRY(text_reader_next(reader, &chunk, &more));
        if (!more) break;
        TRY(submit(packer, &chunk));
        packer->report->bytes_done = text_reader_bytes_done(reader);
        if (options->progress) options->progress(options->context, packer->report);
    }
    while (packer->written < packer->submitted) TRY(write_oldest(packer));
    if (packer->report->tokens == 0)
        FAIL(ERR_DATA, "%s: the inputs hold no text; nothing was written", options->prefix);
    return OK;
}

static Status run_threads(Packer *packer, const PackOptions *options, TextReader *reader) {
    int threads = options->threads;
    pthread_t *thread = calloc((size_t)threads, sizeof *thread);
    packer->slots = JOBS_PER_THREAD * threads;
    packer->ring = calloc((size_t)packer->slots, sizeof *packer->ring);
    REQUIRE(thread && packer->ring, "out of memory");
    json_object_seed(0); // before threads share jansson
    for (int i = 0; i < threads; i++) {
        int error = pthread_create(&thread[i], NULL, work, packer);
        REQUIRE(error == 0, "thread %d of %d: %s; use fewer (-j)", i + 1, threads, strerror(error));
    }
    Status status = feed(packer, options, reader);
    pthread_mutex_lock(&packer->mutex);
    packer->closed = true;
    if (status != OK) packer->taken = packer->submitted; // what nobody has begun is dropped
    pthread_cond_broadcast(&packer->more_work);
    pthread_mutex_unlock(&packer->mutex);
    for (int i = 0; i < threads; i++) pthread_join(thread[i], NULL);
    for (int i = 0; i < packer->slots; i++) job_free(&packer->ring[i]);
    free(packer->ring);
    free(thread);
    return status;
}

static Status pack_with(const PackOptions *options, PackReport *report, const Tokenizer *tokenizer,
                        TextReader *reader) {
    if (tokenizer_eos(tokenizer) < 0)
        FAIL(ERR_CONFIG,
             "%s has no end-of-document token; train a SentencePiece model with </s> (floe data tokenizer), "
             "name one as eos_token in tokenizer_config.json beside an hf: file",
             options->tokenizer);
    Packer packer = {.tokenizer = tokenizer, .report = report};
    pthread_mutex_init(&packer.mutex, NULL);
    pthread_cond_init(&packer.more_work, NULL);
    pthread_cond_init(&packer.more_done, NULL);
    TRY(shard_writer_create(&packer.writer, options->prefix, tokenizer_vocab(tokenizer)));
    Status status = run_threads(&packer, options, reader);
    if (status == OK)
        status = shard_writer_finish(packer.writer);
    else
        shard_writer_cancel(packer.writer);
    pthread_cond_destroy(&packer.more_done);
    pthread_cond_destroy(&packer.more_work);
    pthread_mutex_destroy(&packer.mutex);
    report->skipped = text_reader_skipped(reader);
    return status;
}

Status pack_run(const PackOptions *options, PackReport *report) {
    *report = (PackReport){0};
    Tokenizer *tokenizer;
    TextReader *reader;
    TRY(tokenizer_open(&tokenizer, options->tokenizer));
    Status status = text_reader_create(&reader, options->input, options->inputs);
    if (status == OK) {
        report->files = text_reader_files(reader);
        report->bytes = text_reader_bytes(reader);
        status = pack_with(options, report, tokenizer, reader);
        text_reader_destroy(reader);
    }
    tokenizer_close(tokenizer);
    return status;
}
