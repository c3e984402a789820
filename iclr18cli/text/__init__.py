"""Text: vocabularies, corpora, recurrent language models, their regularisers, training and perplexity."""
