// SPDX-License-Identifier: Apache-2.0
#include "data/sentencepiece.h"
#include <cstdlib>
#include <cstring>
#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>
#include <string>
#include <unordered_map>
#include <vector>

struct PieceModel {
    sentencepiece::SentencePieceProcessor processor;
};

namespace {

char *copy_of(const std::string &text) {
    char *copy = static_cast<char *>(std::malloc(text.size() + 1));
    if (!copy) std::abort();
    std::memcpy(copy, text.data(), text.size());
    copy[text.size()] = 0;
    return copy;
}

char *problem(const sentencepiece::util::Status &status) {
    return status.ok() ? nullptr : copy_of(status.ToString());
}

class Lines : public sentencepiece::SentenceIterator {
  public:
    Lines(const PieceLine *line, int64_t lines) : line_(line), lines_(lines) {
        load();
    }
    bool done() const override {
        return at_ >= lines_;
    }
    void Next() override {
        ++at_;
        load();
    }
    const std::string &value() const override {
        return value_;
    }
    sentencepiece::util::Status status() const override {
        return sentencepiece::util::Status();
    }

  private:
    void load() {
        if (at_ < lines_) value_.assign(line_[at_].text, static_cast<size_t>(line_[at_].bytes));
    }
    const PieceLine *line_;
    int64_t lines_, at_ = 0;
    std::string value_;
};

} // namespace

char *piece_model_open(PieceModel **out, const char *path) {
    PieceModel *model = new PieceModel;
    char *text = problem(model->processor.Load(path));
    if (text) {
        delete model;
        model = nullptr;
    }
    *out = model;
    return text;
}

void piece_model_close(PieceModel *model) {
    delete model;
}
int piece_model_vocab(const PieceModel *model) {
    return model->processor.GetPieceSize();
}
int piece_model_bos(const PieceModel *model) {
    return model->processor.bos_id();
}
int piece_model_eos(const PieceModel *model) {
    return model->processor.eos_id();
}
int piece_model_pad(const PieceModel *model) {
    return model->processor.pad_id();
}

char *piece_model_encode(const PieceModel *model, const char *text, int64_t bytes, int32_t **tokens,
                         int64_t *count) {
    std::vector<int> ids;
    char *error = problem(model->processor.Encode({text, static_cast<size_t>(bytes)}, &ids));
    if (error) return error;
    *count = static_cast<int64_t>(ids.size());
    *tokens = static_cast<int32_t *>(std::malloc((ids.size() + 1) * sizeof(int32_t)));
    if (!*tokens) std::abort();
    for (size_t i = 0; i < ids.size(); i++) (*tokens)[i] = ids[i];
    return nullptr;
}

char *piece_model_decode(const PieceModel *model, const int32_t *tokens, int64_t count, char **text,
                         int64_t *bytes) {
    std::string out;
    char *error = problem(model->processor.Decode(std::vector<int>(tokens, tokens + count), &out));
    if (error) return error;
    *text = copy_of(out);
    *bytes = static_cast<int64_t>(out.size());
    return nullptr;
}

char *piece_model_train(const PieceLine *line, int64_t lines, int vocab, char **model, int64_t *bytes) {
    // Text comes back as it went in: no normalisation, spaces kept; bytes stand for what has no piece, line
    // ends too.
    const std::unordered_map<std::string, std::string> settings = {
        {"model_type", "bpe"},
        {"vocab_size", std::to_string(vocab)},
        {"byte_fallback", "true"},
        {"character_coverage", "0.9995"},
        {"normalization_rule_name", "identity"},
        {"add_dummy_prefix", "false"},
        {"remove_extra_whitespaces", "false"},
        {"allow_whitespace_only_pieces", "true"},
        {"split_digits", "true"},
        {"unk_id", "0"},
        {"bos_id", "1"},
        {"eos_id", "2"},
        {"pad_id", "3"},
        {"max_sentence_length", "1000000"},
        {"num_threads", "4"}, // it is written into the model
        {"minloglevel", "2"},
    };
    Lines input(line, lines);
    std::string out;
    char *error = problem(sentencepiece::SentencePieceTrainer::Train(settings, &input, &out));
    if (error) return error;
    *model = copy_of(out);
    *bytes = static_cast<int64_t>(out.size());
    return nullptr;
}
