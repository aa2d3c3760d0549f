import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;

/** Sends completions with the JDK's client, which offers h2c with each request over plain text. */
public class Completion {
    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        URI uri = URI.create(arguments[0] + "/v1/completions");
        String prompt = "Hi".repeat(50_000);
        for (String body : new String[] {
            "{\"prompt\":\"Hi\"}",
            "{\"prompt\":\"" + prompt + "\"}",
            "{\"prompt\":\"Hi\",\"stream\":true}"
        }) {
            HttpRequest request = HttpRequest.newBuilder(uri)
                .header("content-type", "application/json")
                .POST(BodyPublishers.ofString(body))
                .build();
            HttpResponse<String> response = client.send(request, BodyHandlers.ofString());
            System.out.println(response.statusCode() + " " + response.version());
            System.out.println(response.body().strip().replace("\n", "\\n"));
        }
    }
}
