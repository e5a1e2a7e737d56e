"""Asking models that run behind an OpenAI-compatible server: vLLM, llama.cpp, Ollama and others."""

from errata.served.client import Client, Endpoint, Failure, Message, Request, Said

__all__ = ["Client", "Endpoint", "Failure", "Message", "Request", "Said"]
